#!/usr/bin/env bash
# The whole of latentd in one go: train on digits, export, serve, call every RPC, stop.
# Usage: deploy/demo.sh FOLDER [FLAG...]
# `make demo` runs it. Pictures and models end up in FOLDER; the flags go to `latentd train`.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: deploy/demo.sh FOLDER [FLAG...]}
shift
port=${DEMO_PORT:-50961}
# Chosen for samples that a person takes for digits, in about a minute of training on two cores.
settings=(
    --data mnist-5k --architecture gated --latent-size 12 --likelihood bernoulli --binarization dynamic
    --epochs 90 --learning-rate 3e-3 --lr-schedule one-cycle
)

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
client() { run latentd client "$1" --server "localhost:$port" "${@:2}"; }

rm -rf "$out"
mkdir -p "$out"

say "Train a VAE on 5,000 handwritten digits of MNIST"
run latentd train "${settings[@]}" "$@" --out "$out/run" >"$out/train.log"
tail -n 1 "$out/train.log"

say "Export it: two ONNX graphs, checked against PyTorch, published as a bundle"
run latentd export --checkpoint "$out/run/best.pt" --bundles "$out/models" --name digits

say "Serve it"
printf '\033[2m$ %s\033[0m\n' "latentd serve --bundles $out/models --port $port &"
latentd serve --bundles "$out/models" --port "$port" --metrics-port 0 2>"$out/server.log" &
server=$!
stop() {
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || { echo "The server did not stop cleanly; its log is $out/server.log." >&2; exit 1; }
}
trap stop EXIT
until latentd client health --server "localhost:$port" >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { cat "$out/server.log" >&2; exit 1; }
    sleep 0.2
done
cat "$out/server.log"

say "Call every RPC (test digits are in the bundle's golden.npz)"
digits="$out/models/digits/1/golden.npz:x"
client models
client model
client sample --count 64 --seed 7 --out "$out/samples.png"
client stream --count 20000 --seed 7 --out "$out/samples.npy"
client encode "$digits" --out "$out/latents.npz"
client decode "$out/latents.npz" --out "$out/decoded.png"
client reconstruct "$digits" --scores --out "$out/reconstructions.png"
client interpolate --start seed:7@1 --end seed:7@11 --steps 12 --out "$out/interpolation.png"
client score "$digits" --rows 0:4 --draws 64

say "Stop it"
stop
trap - EXIT
tail -n 1 "$out/server.log"

say "Pictures to look at"
ls "$out"/*.png "$out"/run/*.png
