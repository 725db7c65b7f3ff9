#!/usr/bin/env bash
# Serve bundles with the explorer's page until Enter is pressed. Usage: deploy/explore.sh BUNDLES
set -euo pipefail
bundles=${1:?usage: deploy/explore.sh BUNDLES}
port=${EXPLORE_PORT:-8050}
log=$(mktemp)
latentd serve --bundles "$bundles" --port 0 --metrics-port 0 --http-port "$port" 2>"$log" &
server=$!
trap 'kill -TERM "$server" 2>/dev/null; wait "$server" || cat "$log"; rm -f "$log"' EXIT
until grep -q "Listening on" "$log"; do
    kill -0 "$server" 2>/dev/null || exit 1
    sleep 0.2
done
for model in "$bundles"/*/; do
    echo "http://localhost:$port/explore/$(basename "$model")"
done
read -rp "Open one of these in a browser. Press Enter to stop the server. "
