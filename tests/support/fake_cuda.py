"""Fake CUDA libraries, on which ONNX Runtime's own CUDA provider runs without a GPU.

Everything above them is real: the provider, the order of its kernels, its captured graphs.
runtime.h describes what replaces the GPU.

Usage: python tests/support/fake_cuda.py COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent / "cuda_libraries"
COUNTERS: Final = "FAKE_CUDA_COUNTERS"
"""The environment variable with the path of a process's counters."""
FIELDS: Final = (
    *("fail", "memory", "allocated", "page_locked"),
    *("up_locked", "up_pageable", "down_locked", "down_pageable"),
    *("captured", "replayed", "kernels", "unknown_kernels"),
    *("violations", "overlaps", "across", "waits", "graphs", "linger"),
)
"""The fields of Counters in runtime.h, which describes them."""


class Counters:
    """Counts of the calls to the fake libraries, and its inputs: `fail`, `memory`, `linger`."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(FIELDS))

    def __getattr__(self, name: str) -> int:
        at = 8 * FIELDS.index(name)
        return struct.unpack("<q", self._map[at : at + 8])[0]

    def set(self, name: str, value: int) -> None:
        at = 8 * FIELDS.index(name)
        self._map[at : at + 8] = struct.pack("<q", value)


def unavailable_reason() -> str:
    """Why the fake libraries cannot be built or used on this machine; empty: they can."""
    if not shutil.which("g++"):
        return "g++ is not installed"
    package = util.find_spec("onnxruntime")
    assert package
    assert package.origin
    provider = Path(package.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return "" if provider.exists() else "the installed ONNX Runtime is the build for CPUs only"


def environment(folder: Path) -> dict[str, str]:
    """Build the libraries and a file of counters in `folder`; the variables that select them."""
    subprocess.run([HERE / "build.sh", folder], check=True)
    (folder / "counters").write_bytes(bytes(8 * len(FIELDS)))
    return {"LD_LIBRARY_PATH": str(folder), COUNTERS: str(folder / "counters")}


def main() -> int:
    reason = unavailable_reason()
    if reason:
        print(f"Cannot use the fake CUDA libraries: {reason}.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(sys.argv[1:], env=os.environ | environment(Path(folder)), check=False)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
