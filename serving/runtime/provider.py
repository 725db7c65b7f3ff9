"""Which of ONNX Runtime's providers runs the graphs.

ONNX Runtime falls back to the CPU without failing when CUDA cannot be had. Here nothing falls back
in silence: asked for CUDA and not getting it is a ConfigError that says why; `auto` says aloud
what it chose.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from latentd.errors import ConfigError
from latentd.runtime import cuda

log = logging.getLogger(__name__)

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

_LIBRARIES: Final = (
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libcublas.so.13", "nvidia-cublas"),
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcurand.so.10", "nvidia-curand"),
)
"""What the CUDA provider loads, and the package that brings it."""
_CUDNN: Final = "libcudnn.so.9", "nvidia-cudnn-cu13"
"""For nets with convolutions only, and looked for when the first of them is loaded."""

_MOST_WORKERS: Final = 8


class Provider:
    """The provider that was asked for, or the one that stands in for it.

    asked: auto | cuda | cpu. gpu_memory_mib: the most of a device's memory that one
    graph may take; 0: no limit. Raises ConfigError when a GPU was asked for and cannot be had.
    """

    def __init__(self, asked: str = "auto", gpu_arena_limit_mib: int = 0) -> None:
        self._asked, self._gpu_memory_mib = asked, gpu_arena_limit_mib
        self.name = CPU if asked == "cpu" else self._find()

    @property
    def on_cpu(self) -> bool:
        return self.name == CPU

    def options(self, cuda_graph: bool = False, stream: int = 0) -> list[Any]:
        """What a session is told, the provider first.

        cuda_graph: record runs and replay them.
        stream: the address of the one to compute on; 0: the session has one of its own.
        """
        if self.on_cpu:
            return [CPU]
        on_cuda = {
            "device_id": "0",
            # The default search runs every algorithm at each new shape, for seconds.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Sums in TF32 would differ from training's in the third digit.
            "use_tf32": "0",
            # Batches come in few sizes: what they need is known, and doubling would waste.
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(cuda_graph)),
        }
        if stream:
            on_cuda["user_compute_stream"] = str(stream)
        if self._gpu_memory_mib:
            on_cuda["gpu_mem_limit"] = str(self._gpu_memory_mib << 20)
        return [(CUDA, on_cuda), CPU]

    def confirm(self, session: ort.InferenceSession) -> None:
        """See that a session runs where it should; raises ConfigError, or falls back aloud."""
        if session.get_providers()[0] != self.name:
            why = f"ONNX Runtime could not start its {self.name}; its own message stands above"
            self.name = self._fall_back(why)

    def _find(self) -> str:
        why = problem()
        if not why:
            with contextlib.redirect_stdout(None):  # what it would print of failures is said here
                ort.preload_dlls()  # finds the CUDA libraries in the nvidia-* packages
            why = _missing_library() or cuda.refusal()
        if why:
            return self._fall_back(why)
        ort.set_default_logger_severity(3)  # each session would warn that CUDA is no plugin
        if not _loads(_CUDNN[0]):
            said = "%s cannot be loaded: no net with convolutions can run; install %s."
            log.warning(said, *_CUDNN)
        log.info("Provider: %s.", CUDA)
        return CUDA

    def _fall_back(self, reason: str) -> str:
        if self._asked != "auto":
            raise ConfigError(
                f"CUDA was asked for and cannot be had: {reason}. "
                "Mend that, or start with --provider cpu or auto."
            )
        log.warning("Provider: %s, because %s.", CPU, reason)
        return CPU


def problem() -> str:
    """Why CUDA cannot be had here; empty when nothing is known against it."""
    if CUDA not in ort.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider; install onnxruntime-gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver is not installed (no libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start (cuInit failed)"
    return "" if count.value else "the NVIDIA driver finds no GPU"


def _missing_library() -> str:
    """The first of CUDA's libraries that is not there, as a sentence's end; empty: none."""
    for library, package in _LIBRARIES:
        if not _loads(library):
            return f"{library} cannot be loaded; install {package}"
    return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def default_worker_count(asked: str) -> int:
    """How many processes should serve: one with a GPU, which one process keeps busy; else one for
    each CPU, up to as many as a machine's memory may be expected to hold the models of."""
    if asked == "cuda" or (asked == "auto" and not problem()):
        return 1
    return min(available_cpus(), _MOST_WORKERS)


def available_cpus() -> int:
    """CPUs this process may really use: its affinity mask, cut by its cgroup's quota."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: no quota
    return max(1, math.floor(cpus))
