#!/usr/bin/env bash
# Builds the fake CUDA libraries in the folder $1.
set -euo pipefail
cd "$(dirname "$0")"
out=$1
mkdir -p "$out"

library() {  # name, sources and flags
    local name=$1
    shift
    g++ -std=c++20 -O2 -Wall -Wextra -shared -fPIC -Wl,-soname,"$name" -o "$out/$name" "$@"
}

versioned() {  # as library; ONNX Runtime looks up each symbol of `name` by the version `name`
    echo "$1 { global: *; };" > "$out/$1.version"
    library "$@" -Wl,--version-script="$out/$1.version"
}

versioned libcudart.so.13 runtime.cpp memory.cpp streams.cpp launches.cpp kernels.cpp
versioned libcublas.so.13 cublas.cpp "$out/libcudart.so.13"
versioned libcublasLt.so.13 cublaslt.cpp
library libcuda.so.1 driver.cpp
library libcurand.so.10 -x c++ /dev/null  # loaded, but never called
