"""A limit on a process's memory: its own cgroup if one can be made, else RLIMIT_AS."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CGROUPS: Final = {  # the folder of groups, and the file of a group that limits it
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",  # version 1
    Path("/sys/fs/cgroup"): "memory.max",
}


@contextmanager
def limited(pid: int, nbytes: int) -> Iterator[str]:
    """Limit the process to `nbytes` more than it has; yields what limits it. The process must end
    before the block does."""
    for root, limit in _CGROUPS.items():
        group = root / f"latentd-test-{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(_status(pid, "VmRSS") + nbytes))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            group.rmdir()
            continue
        try:
            yield "cgroup"
        finally:
            group.rmdir()
        return
    limit_bytes = _status(pid, "VmSize") + nbytes
    resource.prlimit(pid, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    yield "RLIMIT_AS"


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024
