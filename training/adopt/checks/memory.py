"""The most memory that this process has at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_PROCESS: Final = Path("/proc/self")
_RESET: Final = "5"  # of the peak, as clear_refs has it


class Peak:
    """From its making on, above what was there then; 0 if the system does not tell."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text(_RESET)
        self._before = _peak_bytes()

    @property
    def nbytes(self) -> int:
        """The peak so far, in bytes."""
        return _peak_bytes() - self._before


def _peak_bytes() -> int:
    try:
        status = (_PROCESS / "status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0
