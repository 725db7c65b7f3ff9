"""CUDA's libraries without a GPU, for ONNX Runtime's own CUDA provider to run on.

Everything above them is real: the provider, the order of its kernels, its recordings. runtime.h
says what stands for the GPU. Usage: python tests/support/fake_cuda.py COMMAND [ARGUMENT ...]
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
COUNTERS: Final = "LATENTD_FAKE_CUDA"
"""The environment variable that names the file of a process's counters."""
FIELDS: Final = (
    *("fail", "memory", "allocated", "page_locked"),
    *("up_locked", "up_pageable", "down_locked", "down_pageable"),
    *("recorded", "replayed", "kernels", "unknown_kernels"),
    *("violations", "overlaps", "across", "waits", "graphs", "linger"),
)
"""As in runtime.h, which says what they are."""


class Counters:
    """What has been asked of the stand-in, and what it is told: `fail`, `memory`, `linger`."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(FIELDS))

    def __getattr__(self, name: str) -> int:
        at = 8 * FIELDS.index(name)
        return struct.unpack("<q", self._map[at : at + 8])[0]

    def tell(self, name: str, value: int) -> None:
        at = 8 * FIELDS.index(name)
        self._map[at : at + 8] = struct.pack("<q", value)


def lacking() -> str:
    """Why there can be no stand-in here; empty: there can."""
    if not shutil.which("g++"):
        return "no g++ here"
    package = util.find_spec("onnxruntime")
    assert package
    assert package.origin
    provider = Path(package.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return "" if provider.exists() else "ONNX Runtime's build for CPUs alone is installed"


def environment(folder: Path) -> dict[str, str]:
    """Build the libraries and a file of counters in `folder`; what a process runs on them with."""
    subprocess.run([HERE / "build.sh", folder], check=True)
    (folder / "counters").write_bytes(bytes(8 * len(FIELDS)))
    return {"LD_LIBRARY_PATH": str(folder), COUNTERS: str(folder / "counters")}


def main() -> int:
    why = lacking()
    if why:
        print(f"The stand-in for CUDA's libraries cannot be built: {why}.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(sys.argv[1:], env=os.environ | environment(Path(folder)), check=False)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
