"""What a process may not do, also where it is root, who may do everything."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_VERSION = 0x20080522
_OVERRIDES = 1, 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
_BPF = 21, 39  # CAP_SYS_ADMIN and CAP_BPF


def enforced() -> AbstractContextManager[None]:
    """While inside, this thread and those that it starts are bound by files' permissions."""
    return _without(*_OVERRIDES)


def without_bpf() -> AbstractContextManager[None]:
    """While inside, this thread and those that it starts may not load eBPF programs."""
    return _without(*_BPF)


@contextmanager
def _without(*capabilities: int) -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)  # this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of each 32 capabilities

    def call(change: ctypes._CFuncPtr) -> None:
        if change(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    call(libc.capget)
    before = list(sets)
    for capability in capabilities:
        sets[3 * (capability // 32)] &= ~(1 << capability % 32)
    call(libc.capset)
    try:
        yield
    finally:
        sets[:] = before
        call(libc.capset)
