#!/bin/sh
# Install latentd, as an image has it, into a virtual environment that needs nothing but the base's
# Python. Run it in the source tree:
#     install.sh cpu|cuda|jobs-cpu|jobs-cuda|training PREFIX
set -eu
variant=$1
prefix=$2

case $variant in
    cpu) set -- '.[serve-core,tracing]' onnxruntime ;; # a tenth of onnxruntime-gpu's size
    cuda) set -- '.[serve,cuda,tracing]' --constraint cuda.txt ;;
    jobs-cpu) set -- '.[serve-core,jobs-core]' onnxruntime ;;
    jobs-cuda) set -- '.[serve,cuda,jobs-core]' --constraint cuda.txt ;;
    training) set -- '.[train]' ;;
    *) echo "install.sh: no variant $variant; choose cpu, cuda, jobs-cpu, jobs-cuda or training." >&2; exit 64 ;;
esac

[ -e "$prefix/bin/python" ] || python3 -m venv --without-pip "$prefix" # jobs go into serving's
# No index may ask for a compiler: the base has none, and what it would build is not what was tested.
python3 -m pip --python "$prefix/bin/python" install --no-cache-dir --only-binary :all: \
    --constraint constraints.txt "$@"

if [ "$variant" != training ] && "$prefix/bin/python" -c 'import torch' 2>/dev/null; then
    echo "install.sh: PyTorch has found its way into the serving image." >&2
    exit 1
fi
