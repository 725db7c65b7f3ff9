"""The CPUs and memory that this process may use, within its cgroups and limits."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """The number of CPUs this process may use, by its affinity mask and its cgroups' quotas."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    for folder in _cgroups("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")  # version 2, then version 1
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # "max" and "-1": no limit
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def available_memory() -> int:
    """The bytes that this process can still allocate without swapping or being killed."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_PHYS_PAGES") * page
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for folder in _cgroups("memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit.isdecimal() and used.isdecimal():
            free = min(free, int(limit) - int(used) + _file_cache(folder))
    limit_of_addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit_of_addresses != resource.RLIM_INFINITY:
        used_pages = (_text(Path("/proc/self/statm")) or "0").split()[0]
        free = min(free, limit_of_addresses - int(used_pages) * page)
    return max(0, free)


def format_bytes(nbytes: int) -> str:
    """3_200_000_000 -> '3.2 GB'."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"


def _file_cache(folder: Path) -> int:
    """The bytes of a cgroup's usage that the kernel frees when memory is short."""
    lines = [line.split() for line in _text(folder / "memory.stat").splitlines()]
    stat = {name: int(value) for name, value in lines}
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups and their ancestors, whose limits also apply."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        # A container sees its own cgroup as the root but may read the host's path: skip that path.
        for path in (Path(own), *Path(own).parents):
            yield root / path.relative_to("/")


def _text(path: Path) -> str:
    """The text of a small kernel file, or an empty string if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
