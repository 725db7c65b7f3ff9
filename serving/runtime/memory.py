"""How much memory is available to this process, and how much a process uses; from Linux's files.

Without these files (on another system), memory counts as unlimited.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_GROUPS: Final = (
    # folder, limit, usage, and the part of the usage that the kernel can reclaim: cgroup v2, v1
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a process can allocate before the machine or the control group has none left."""
    available = sys.maxsize
    try:
        line = (proc / "meminfo").read_text().partition("MemAvailable:")[2]
        available = int(line.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        pass  # not Linux
    for folder, limit, usage, reclaimed in _groups(proc, groups):
        try:
            max_bytes = int(
                (folder / limit).read_text()
            )  # without a limit v2 has "max": ValueError
            used = int((folder / usage).read_text())
            stat = (folder / "memory.stat").read_text().split()
            cached = dict(zip(stat[::2], map(int, stat[1::2]), strict=True)).get(reclaimed, 0)
        except (OSError, ValueError):
            continue
        available = min(available, max(0, max_bytes - used + cached))
    return available


def _groups(proc: Path, groups: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The control groups that limit this process: the mounted one, as in a container, and the
    process's own below it, as for a systemd service."""
    own = {"": "", "memory": ""}  # by the controller's name; v2's is empty
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in own.keys() & set(controllers.split(",")):
                own[name] = path.strip("/")
    for controller, *files in _GROUPS:
        for path in {"", own[controller]}:
            yield groups / controller / path, files[0], files[1], files[2]


def private_bytes(pid: int | str = "self") -> int:
    """Bytes of memory that a process uses, without mapped files; 0 if unknown or it has ended."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def data_bytes() -> int:
    """Bytes of writable private mappings of this process: what RLIMIT_DATA counts."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmData:")[2].split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0
