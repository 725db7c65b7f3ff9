"""What ONNX Runtime's Python interface has no words for: streams, and memory of one's own.

A session is given a stream to compute on and is then not waited for: copies to the device, the
graph's run and the copies back are asked for in one breath, each after the one before it, and the
host waits once, at the end. That takes a handful of calls of CUDA's runtime, in the library that
ONNX Runtime's CUDA provider has loaded anyhow.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from latentd.runtime.capture_lock import GPU

LIBRARY: Final = "libcudart.so.13"
_NON_BLOCKING: Final = 1  # nor does it wait for CUDA's default stream
_NO_TIMING: Final = 2
_WHICHEVER: Final = 4  # cudaMemcpyDefault: addresses say where they are


class CudaError(RuntimeError):
    """CUDA refused a call. lasting: it refuses all others, too, as long as the process lives."""

    def __init__(self, said: str, sticky: bool) -> None:
        super().__init__(said)
        self.sticky = sticky


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError where there is none."""
    library = ctypes.CDLL(LIBRARY)
    library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _call(name: str, *arguments: Any) -> None:
    """Call a function of CUDA's runtime, with the GIL released. Raises CudaError."""
    cuda = _library()
    code = getattr(cuda, name)(*arguments)
    if code:
        cuda.cudaGetLastError()  # forgets it, or ONNX Runtime would take it for an error of its own
        sticky = bool(cuda.cudaGetLastError())  # but for those that stay
        said, why = cuda.cudaGetErrorName(code).decode(), cuda.cudaGetErrorString(code).decode()
        raise CudaError(f"{name}: {said}, {why}", sticky)


def _give_back(name: str, what: ctypes.c_void_p) -> None:
    """As _call, for what a lost device has taken along."""
    try:
        _call(name, what)
    except CudaError as error:
        if not error.sticky:
            raise


class Memory:
    """Bytes on the device, or, page-locked, in this process where the device copies from and to by
    itself. Raises CudaError when there are none left."""

    def __init__(self, nbytes: int, page_locked: bool = False) -> None:
        place, size = ctypes.c_void_p(), ctypes.c_size_t(max(nbytes, 1))
        if page_locked:
            _call("cudaHostAlloc", ctypes.byref(place), size, ctypes.c_uint(0))
        else:
            _call("cudaMalloc", ctypes.byref(place), size)
        self.address, self._page_locked = place.value or 0, page_locked

    def close(self) -> None:
        """Give it back; again is nothing."""
        if self.address:
            address, self.address = ctypes.c_void_p(self.address), 0
            _give_back("cudaFreeHost" if self._page_locked else "cudaFree", address)


class Stream:
    """What the device is asked for here, it does in this order, beside what other streams ask."""

    def __init__(self) -> None:
        handle, mark = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        _call("cudaEventCreateWithFlags", ctypes.byref(mark), ctypes.c_uint(_NO_TIMING))
        self._handle, self._mark = handle, mark

    @property
    def address(self) -> int:
        """What a provider's option names it by."""
        return self._handle.value or 0

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        """Copy between addresses, either of them on the device."""
        whichever, size = ctypes.c_int(_WHICHEVER), ctypes.c_size_t(nbytes)
        to_, from_ = ctypes.c_void_p(to), ctypes.c_void_p(origin)
        _call("cudaMemcpyAsync", to_, from_, size, whichever, self._handle)

    def follow(self, other: Stream) -> None:
        """Do what comes from now on after all that `other` has been asked for until now. Of one
        `other`, by one thread at a time."""
        _call("cudaEventRecord", other._mark, other._handle)
        _call("cudaStreamWaitEvent", self._handle, other._mark, ctypes.c_uint(0))

    def wait(self) -> None:
        """Block until all is done. Raises CudaError when some of it failed."""
        _call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        """Give it back, when nothing is asked of it any more."""
        _give_back("cudaStreamDestroy", self._handle)
        _give_back("cudaEventDestroy", self._mark)


def refusal() -> str:
    """Why CUDA does nothing for this process, as a sentence's end; empty: it does."""
    try:
        with GPU.use():
            Stream().close()
    except CudaError as error:
        return f"CUDA does not start ({error})"
    return ""


class Cuda:
    """An NVIDIA GPU as a place for batches: a buffers.Device."""

    name: Final = "cuda"

    def stream(self) -> Stream:
        """A new one. Raises CudaError."""
        return Stream()

    def memory(self, nbytes: int) -> tuple[Memory, Memory]:
        """On the device, and page-locked beside it. Raises CudaError."""
        there = Memory(nbytes)
        try:
            return there, Memory(nbytes, page_locked=True)
        except CudaError:
            there.close()
            raise
