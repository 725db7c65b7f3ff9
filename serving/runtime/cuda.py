"""Streams and memory of CUDA's runtime, which ONNX Runtime's Python interface does not offer.

A session is given a stream to compute on, and does not wait for it: the copies to the device, the
graph's run and the copies back are all queued, each after the one before, and the host waits once,
at the end. That takes a handful of calls of CUDA's runtime, in the library that ONNX Runtime's CUDA
provider has already loaded.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from latentd.runtime.capture_lock import CUDA_CAPTURE

LIBRARY: Final = "libcudart.so.13"
_NON_BLOCKING: Final = 1  # cudaStreamNonBlocking: does not wait for CUDA's default stream either
_DISABLE_TIMING: Final = 2  # cudaEventDisableTiming
_MEMCPY_DEFAULT: Final = 4  # cudaMemcpyDefault: the addresses tell which memory is meant


class CudaError(RuntimeError):
    """CUDA rejected a call. sticky: it rejects all later calls of this process, too."""

    def __init__(self, message: str, sticky: bool) -> None:
        super().__init__(message)
        self.sticky = sticky


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError if it is missing."""
    library = ctypes.CDLL(LIBRARY)
    library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _call(function: str, *arguments: Any) -> None:
    """Call a function of CUDA's runtime, with the GIL released. Raises CudaError."""
    cuda = _library()
    code = getattr(cuda, function)(*arguments)
    if code:
        cuda.cudaGetLastError()  # clears it, or ONNX Runtime would take it for an error of its own
        sticky = bool(cuda.cudaGetLastError())  # a sticky error cannot be cleared
        name, message = (
            text(code).decode() for text in (cuda.cudaGetErrorName, cuda.cudaGetErrorString)
        )
        raise CudaError(f"{function}: {name}, {message}", sticky)


def _free(function: str, handle: ctypes.c_void_p) -> None:
    """As _call, but ignores sticky errors: a lost device has freed everything already."""
    try:
        _call(function, handle)
    except CudaError as error:
        if not error.sticky:
            raise


class CudaAllocation:
    """Bytes on the device, or page-locked bytes in this process, which the device itself can copy.
    Raises CudaError when no memory is left."""

    def __init__(self, nbytes: int, page_locked: bool = False) -> None:
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t(max(nbytes, 1))
        if page_locked:
            _call("cudaHostAlloc", ctypes.byref(pointer), size, ctypes.c_uint(0))
        else:
            _call("cudaMalloc", ctypes.byref(pointer), size)
        self.address, self._page_locked = pointer.value or 0, page_locked

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self.address:
            address, self.address = ctypes.c_void_p(self.address), 0
            _free("cudaFreeHost" if self._page_locked else "cudaFree", address)


class CudaStream:
    """A queue of the device's work, which runs in order and concurrently with other streams."""

    def __init__(self) -> None:
        handle, event = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        _call("cudaEventCreateWithFlags", ctypes.byref(event), ctypes.c_uint(_DISABLE_TIMING))
        self._handle, self._event = handle, event

    @property
    def address(self) -> int:
        """Its handle, for a provider's option."""
        return self._handle.value or 0

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Queue a copy between two addresses, either of them on the device."""
        kind, size = ctypes.c_int(_MEMCPY_DEFAULT), ctypes.c_size_t(nbytes)
        to, from_ = ctypes.c_void_p(destination), ctypes.c_void_p(source)
        _call("cudaMemcpyAsync", to, from_, size, kind, self._handle)

    def wait_stream(self, other: CudaStream) -> None:
        """Later work in this stream waits for the work already in `other`. For one `other`, only
        one thread at a time may call this."""
        _call("cudaEventRecord", other._event, other._handle)
        _call("cudaStreamWaitEvent", self._handle, other._event, ctypes.c_uint(0))

    def synchronize(self) -> None:
        """Block until all work is done. Raises CudaError when some of it failed."""
        _call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        """Destroy it; nothing may be queued any more."""
        _free("cudaStreamDestroy", self._handle)
        _free("cudaEventDestroy", self._event)


def unavailable_reason() -> str:
    """Why CUDA does not work in this process, as a clause for an error message; empty: it works."""
    try:
        with CUDA_CAPTURE.shared():
            CudaStream().close()
    except CudaError as error:
        return f"CUDA initialization failed ({error})"
    return ""


class Cuda:
    """An NVIDIA GPU: a buffers.Device."""

    name: Final = "cuda"

    def create_stream(self) -> CudaStream:
        """A new stream. Raises CudaError."""
        return CudaStream()

    def allocate(self, nbytes: int) -> tuple[CudaAllocation, CudaAllocation]:
        """Memory on the device, and as much page-locked in this process. Raises CudaError."""
        device = CudaAllocation(nbytes)
        try:
            return device, CudaAllocation(nbytes, page_locked=True)
        except CudaError:
            device.close()
            raise
