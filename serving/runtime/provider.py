"""Which of ONNX Runtime's providers runs the graphs.

ONNX Runtime silently falls back to the CPU when CUDA is not available. This module never does. If
CUDA is requested but not available, it raises a ConfigError with the reason; `auto` logs its
choice.
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
"""The libraries that the CUDA provider loads, and the packages that contain them."""
_CUDNN: Final = "libcudnn.so.9", "nvidia-cudnn-cu13"
"""Only for networks with convolutions; the CUDA provider loads it with the first of them."""

_MAX_WORKERS: Final = 8


class Provider:
    """The requested provider, or its fallback.

    requested: auto | cuda | cpu. gpu_arena_limit_mib: limit of the device memory that one graph may
    take; 0: none. Raises ConfigError when CUDA was requested but is not available.
    """

    def __init__(self, requested: str = "auto", gpu_arena_limit_mib: int = 0) -> None:
        self._requested, self._gpu_arena_limit_mib = requested, gpu_arena_limit_mib
        self.name = CPU if requested == "cpu" else self._find()

    @property
    def on_cpu(self) -> bool:
        return self.name == CPU

    def options(self, cuda_graph: bool = False, stream: int = 0) -> list[Any]:
        """The `providers` argument of a session, the preferred one first.

        cuda_graph: capture runs as CUDA graphs and replay them.
        stream: the address of the stream to compute on; 0: the session makes its own.
        """
        if self.on_cpu:
            return [CPU]
        cuda_options = {
            "device_id": "0",
            # The default search tries every algorithm at each new shape, which takes seconds.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Sums in TF32 would differ from those of training in the third digit.
            "use_tf32": "0",
            # Batches have few sizes, so the needed memory is known; doubling would waste it.
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(cuda_graph)),
        }
        if stream:
            cuda_options["user_compute_stream"] = str(stream)
        if self._gpu_arena_limit_mib:
            cuda_options["gpu_mem_limit"] = str(self._gpu_arena_limit_mib << 20)
        return [(CUDA, cuda_options), CPU]

    def verify(self, session: ort.InferenceSession) -> None:
        """Check that a session runs on this provider. Otherwise raises ConfigError, or falls back
        and logs it."""
        if session.get_providers()[0] != self.name:
            reason = f"ONNX Runtime could not start its {self.name}; see its log output above"
            self.name = self._fall_back(reason)

    def _find(self) -> str:
        reason = unavailable_reason()
        if not reason:
            with contextlib.redirect_stdout(None):  # it prints failures; we report them ourselves
                ort.preload_dlls()  # finds the CUDA libraries in the nvidia-* packages
            reason = _missing_library() or cuda.unavailable_reason()
        if reason:
            return self._fall_back(reason)
        ort.set_default_logger_severity(3)  # each session would warn that CUDA is not a plugin
        if not _can_load(_CUDNN[0]):
            message = "%s cannot be loaded, so networks with convolutions cannot run. Install %s."
            log.warning(message, *_CUDNN)
        log.info("Using %s.", CUDA)
        return CUDA

    def _fall_back(self, reason: str) -> str:
        if self._requested != "auto":
            raise ConfigError(
                f"CUDA requested but not available: {reason}. "
                "Fix this, or use --provider cpu or auto."
            )
        log.warning("Using %s: %s.", CPU, reason)
        return CPU


def unavailable_reason() -> str:
    """Why CUDA is not available on this machine; empty: no reason is known."""
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
    """Which of CUDA's libraries is missing, as a clause for an error message; empty: none."""
    for library, package in _LIBRARIES:
        if not _can_load(library):
            return f"{library} cannot be loaded; install {package}"
    return ""


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def default_worker_count(requested: str) -> int:
    """How many processes should serve with the requested provider. With a GPU, one: it keeps the
    GPU busy. Otherwise one for each CPU, but at most as many as have room for their models."""
    if requested == "cuda" or (requested == "auto" and not unavailable_reason()):
        return 1
    return min(available_cpus(), _MAX_WORKERS)


def available_cpus() -> int:
    """CPUs this process may use: its affinity mask, limited by its cgroup's quota."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2: no quota
    return max(1, math.floor(cpus))
