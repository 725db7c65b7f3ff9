#!/usr/bin/env bash
# The whole of latentd in one go: train on digits and on names, export, serve, call every RPC, stop.
# Usage: deploy/demo.sh FOLDER
# `make demo` runs it. Pictures and models end up in FOLDER.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: deploy/demo.sh FOLDER}
port=${DEMO_PORT:-50961}
http_port=${DEMO_HTTP_PORT:-50962}
# Chosen for samples that a person takes for digits, in about a minute of training on two cores.
digits=(
    --data mnist-5k --architecture gated --latent-size 12 --likelihood bernoulli --binarization dynamic
    --epochs "${DEMO_EPOCHS:-90}" --learning-rate 3e-3 --lr-schedule one-cycle
)
# First names in the United States, of its Social Security Administration (public domain).
names=(
    --data text:deploy/names.txt --latent-size 16 --hidden-size 128
    --free-bits 0.3 --kl-warmup-epochs 2 --epochs "${DEMO_EPOCHS:-10}"
    --learning-rate 2e-3 --lr-schedule cosine --ema-decay 0.999
)

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
client() { run latentd client "$1" --server "localhost:$port" "${@:2}"; }

rm -rf "$out"
mkdir -p "$out"

say "Train a VAE on 5,000 handwritten digits of MNIST"
run latentd train "${digits[@]}" --out "$out/digits" >"$out/digits.log"
tail -n 1 "$out/digits.log"

say "Train a VAE on 29,494 names"
run latentd train "${names[@]}" --out "$out/names" >"$out/names.log"
tail -n 1 "$out/names.log"

say "Export them: two ONNX graphs each, checked against PyTorch, published as bundles"
run latentd export --checkpoint "$out/digits/best.pt" --bundles "$out/models" --name digits --map-rows 2000
run latentd export --checkpoint "$out/names/best.pt" --bundles "$out/models" --name names --map-rows 2000

say "Serve them"
printf '\033[2m$ %s\033[0m\n' "latentd serve --bundles $out/models --default-model digits --port $port --http-port $http_port &"
latentd serve --bundles "$out/models" --default-model digits --port "$port" --http-port "$http_port" --metrics-port 0 2>"$out/server.log" &
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
test="$out/models/digits/1/golden.npz:x"
client models
client model
client sample --count 64 --seed 7 --out "$out/samples.png"
client stream --count 20000 --seed 7 --out "$out/samples.npy"
client encode "$test" --out "$out/latents.npz"
client decode "$out/latents.npz" --out "$out/decoded.png"
client reconstruct "$test" --scores --out "$out/reconstructions.png"
client interpolate --start seed:7@1 --end seed:7@11 --steps 12 --out "$out/interpolation.png"
client score "$test" --rows 0:4 --draws 64
client map --out "$out/map.png"

say "The same over HTTP, for browsers and curl"
page="http://localhost:$http_port"
if command -v curl >/dev/null; then
    run curl -sf "$page/sample/digits.png?seed=7&count=16" -o "$out/samples_over_http.png"
fi
echo "The explorer is at $page/explore/digits while this server runs; make explore serves it again."

say "Invent twenty names, and walk from one name to another"
client sample --model names --count 20 --seed 7
client interpolate --model names --start text:alexa --end text:karen --steps 8

say "Stop the server"
stop
trap - EXIT
tail -n 1 "$out/server.log"

say "Pictures to look at"
ls "$out"/*.png "$out"/*/*.png
