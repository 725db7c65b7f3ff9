"""Files that this process may not read, also where it is root, who may read everything."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def enforced() -> Iterator[None]:
    """While inside, this thread and those that it starts are bound by files' permissions."""
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
    before = sets[0]
    sets[0] &= ~_OVERRIDES
    call(libc.capset)
    try:
        yield
    finally:
        sets[0] = before
        call(libc.capset)
