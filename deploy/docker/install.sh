#!/bin/sh
# Install latentd, as an image has it, into a virtual environment that needs nothing but the base's
# Python. Run it in the source tree:
#     install.sh cpu|cuda|jobs-cpu|jobs-cuda|training PREFIX
set -eu
variant=$1
prefix=$2

locked=locked/$variant.txt

if [ ! -e "$locked" ]; then
    echo "install.sh: no variant $variant; choose cpu, cuda, jobs-cpu, jobs-cuda or training." >&2
    exit 64
fi

[ -e "$prefix/bin/python" ] || python3 -m venv --without-pip "$prefix" # jobs go into serving's
# No index may ask for a compiler: the base has none, and what it would build is not what was tested.
into() { python3 -m pip --python "$prefix/bin/python" install --no-cache-dir --only-binary :all: "$@"; }
into --require-hashes --requirement "$locked" # what lock.sh has written, to the bit
into --no-deps .

if [ "$variant" != training ] && "$prefix/bin/python" -c 'import torch' 2>/dev/null; then
    echo "install.sh: PyTorch has found its way into the serving image." >&2
    exit 1
fi
