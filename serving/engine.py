"""ONNX Runtime: which provider runs the graphs, how many threads, and arrays in, arrays out.

ONNX Runtime falls back to the CPU without failing when CUDA cannot be had. Here nothing falls back
in silence: asked for CUDA and not getting it is a ConfigError that says why; `auto` says aloud
what it chose.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from numpy.typing import NDArray

from serving import outside
from serving.errors import BundleError, ConfigError

log = logging.getLogger(__name__)

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

_CUDA_LIBRARIES: Final = (
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcufft.so.12", "nvidia-cufft"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13"),
)
"""What ONNX Runtime's CUDA provider loads, and the package that brings each."""


_MOST_WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph's input and outputs: name -> (dtype, shape of one row)."""

    input: tuple[str, str, tuple[int, ...]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


class Graph:
    """One ONNX graph, loaded from bytes that have been verified."""

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self._session = session
        self._input = signature.input[0]
        self.signature = signature

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run one batch; `array` has shape (rows, ...). Releases the GIL while the graph runs."""
        arrays: list[NDArray[Any]] = self._session.run(outputs, {self._input: array})
        return arrays

    def close(self) -> None:
        """Give the session's memory back now, whoever still holds the graph; no run may follow."""
        del self._session


class Engine:
    """Loads graphs onto the provider that was chosen when the process started."""

    def __init__(self, provider: str = "auto") -> None:
        """Choose the provider: auto | cuda | cpu. Raises ConfigError when CUDA was asked for and
        cannot be had."""
        self._asked = provider
        self.provider = CPU if provider == "cpu" else self._find_cuda()

    def load(self, model: bytes, signature: Signature, threads: int) -> Graph:
        """Make a session of a graph's bytes, with so many threads for a run if it is on the CPU.

        Raises BundleError(external | engine | signature).
        """
        outside.refuse(model)
        options = ort.SessionOptions()
        on_cpu = self.provider == CPU
        options.intra_op_num_threads = threads if on_cpu else 1
        options.inter_op_num_threads = 1
        # Spinning workers would take the event loop's CPU while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; what it says of fallbacks is said below
        providers: list[Any] = [CPU]
        if not on_cpu:
            # HEURISTIC: the default search runs every algorithm at each new shape, for seconds.
            providers.insert(0, (CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}))
        try:
            session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # the runtime has no common base for what it raises
            raise BundleError("engine", f"ONNX Runtime cannot load the graph: {error}") from error
        if not on_cpu and session.get_providers()[0] != CUDA:
            self._fall_back(_missing_library())
        _check_signature(session, signature)
        return Graph(session, signature)

    def _find_cuda(self) -> str:
        problem = _cuda_problem()
        if problem:
            return self._fall_back(problem)
        ort.preload_dlls()  # finds the CUDA libraries in the nvidia-* packages
        log.info("Provider: %s.", CUDA)
        return CUDA

    def _fall_back(self, reason: str) -> str:
        if self._asked == "cuda":
            raise ConfigError(
                f"CUDA was asked for and cannot be had: {reason}. "
                "Mend that, or start with --provider cpu or auto."
            )
        log.warning("Provider: %s, because %s.", CPU, reason)
        self.provider = CPU
        return CPU


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


def best_workers(provider: str) -> int:
    """How many processes should serve: one with CUDA, which one process keeps busy; else one for
    each CPU, up to as many as a machine's memory may be expected to hold the models of."""
    if provider == "cuda" or (provider == "auto" and not _cuda_problem()):
        return 1
    return min(available_cpus(), _MOST_WORKERS)


def _cuda_problem() -> str:
    """Why there is no CUDA here; empty when there is."""
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
    for library, package in _CUDA_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            return f"{library} cannot be loaded; install {package}"
    return "ONNX Runtime could not start its CUDA provider; its own message stands above"


_TYPES: Final = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


def _check_signature(session: ort.InferenceSession, wanted: Signature) -> None:
    """Refuse a graph whose names, types or shapes are not the contract's."""
    name, dtype, shape = wanted.input
    found = {value.name: value for value in session.get_inputs()}
    if set(found) != {name}:
        raise BundleError("signature", f"The graph's inputs are {sorted(found)}, not ['{name}'].")
    _check_value(found[name], dtype, shape)
    given = {value.name: value for value in session.get_outputs()}
    for output, (dtype, shape) in wanted.outputs.items():
        if output not in given:
            raise BundleError("signature", f"The graph has no output named {output}.")
        _check_value(given[output], dtype, shape)


def _check_value(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if _TYPES.get(value.type) != dtype or list(value.shape[1:]) != list(shape):
        raise BundleError(
            "signature",
            f"{value.name} is {value.type} of shape {value.shape}, not {dtype} of shape "
            f"[rows, {', '.join(map(str, shape))}].",
        )
    if isinstance(value.shape[0], int):
        raise BundleError("signature", f"{value.name} has a fixed batch of {value.shape[0]} rows.")
