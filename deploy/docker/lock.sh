#!/bin/sh
# Write what each image installs, every file by its hash: locked/VARIANT.txt, which install.sh
# installs. Run it in the source tree, with uv on the PATH:
#     lock.sh [FOLDER]
# The versions are those of deploy/constraints.txt and cuda.txt. For Python 3.11 on Linux, x86-64.
set -eu
folder=${1:-deploy/docker/locked}

lock() {
    variant=$1
    shift
    # --no-emit-package: latentd itself comes from the tree.
    uv pip compile --quiet --no-config --no-header --generate-hashes --annotation-style line \
        --only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-emit-package latentd --constraint deploy/constraints.txt "$@" \
        --output-file "$folder/$variant.txt" pyproject.toml
}

mkdir -p "$folder"
# The small onnxruntime has no extra: in none of them it may meet onnxruntime-gpu.
runtime=deploy/docker/cpu.in
cuda=deploy/docker/cuda.txt
lock cpu --extra serve-core --extra tracing "$runtime"
lock jobs-cpu --extra serve-core --extra jobs-core "$runtime"
lock cuda --extra serve-cuda --extra tracing --constraint "$cuda"
lock jobs-cuda --extra serve-cuda --extra jobs-core --constraint "$cuda"
lock training --extra train
