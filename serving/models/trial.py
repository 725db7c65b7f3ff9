"""Tries a bundle in a child process, so that a bad graph cannot harm the server.

What a graph does is known only when it runs: it may never end, use all memory or crash its process.
So a child process first does all that loading needs (verify the files, create the sessions, profile
them, run the golden vectors), with limits on time and memory. It reports the profile that it
measured. The server then only creates the sessions and runs the golden vectors again.

When memory runs out, the kernel kills the child first. The child runs at a low priority and ends
with its parent. Two limits bound its memory: RLIMIT_DATA (not on a GPU, whose driver maps more
memory than it uses), and the parent, which watches the memory that the child uses.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from latentd import bundle
from latentd.errors import BundleError, ConfigError
from latentd.models.loading import load_model
from latentd.models.profile import ModelProfile
from latentd.models.trial_results import TrialResult
from latentd.runtime import memory
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05
_MAX_MEMORY_SHARE: Final = 0.8  # of the available memory: the limit of one load
_MIN_FREE_SHARE: Final = 0.05  # of the memory that was available: must stay free during a trial
_BASE_BYTES: Final = 128 << 20  # the child may use these before it loads anything
_MAX_STDERR: Final = 2000  # characters of the child's stderr that are logged after a crash
_NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1
_OUT_OF_MEMORY: Final = (
    *("bad_alloc", "bad allocation", "Failed to allocate", "Cannot allocate memory"),
)


def max_load_bytes(settings: Settings) -> int:
    """The memory that the load of one version may use now, its files included."""
    return settings.load_memory_mib << 20 or int(_MAX_MEMORY_SHARE * memory.available_bytes())


# The parent.


def run(
    path: Path,
    settings: Settings,
    previous: ModelProfile | None,
    check_cancelled: Callable[[], None],
) -> TrialResult:
    """Try the bundle in `path`; blocks.

    settings: with the provider that the server chose. previous: as `load_model` takes it.
    check_cancelled: called every 50 ms; if it raises, the trial ends. Raises BundleError: with the
    child's reason, or timeout, memory or crash.
    """
    available, max_bytes = memory.available_bytes(), max_load_bytes(settings)
    request = {
        "path": str(path),
        "settings": dataclasses.asdict(settings),
        "previous": previous and previous.to_json(),
        "max_bytes": max_bytes,
        "parent": os.getpid(),
    }
    with _start_child() as child:
        try:
            stdout, stderr = _communicate(
                child, json.dumps(request), settings, max_bytes, available, check_cancelled
            )
        finally:
            child.kill()
    if child.returncode == -signal.SIGKILL:
        raise _out_of_memory(max_bytes)
    try:
        response = json.loads(stdout)
    except ValueError:
        code = child.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        log.error("End of the trial's stderr: %s", stderr[-_MAX_STDERR:].strip())
        raise BundleError(
            "crash", f"Its trial crashed ({how}): ONNX Runtime cannot run this graph."
        ) from None
    if "rejected" in response:
        raise BundleError(response["rejected"], response["message"])
    # Each worker will use as much.
    if response["bytes"] * settings.workers > int(_MAX_MEMORY_SHARE * memory.available_bytes()):
        raise BundleError(
            "memory",
            f"It needs {response['bytes'] >> 20} MiB in each of {settings.workers} worker(s), and "
            f"{memory.available_bytes() >> 20} MiB are available. Give the server more memory or "
            "fewer --workers, or serve fewer versions (--keep-versions).",
        )
    return TrialResult(response["digest"], ModelProfile.from_json(response["profile"]))


def _start_child() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "latentd.models.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _communicate(
    child: subprocess.Popen[str],
    request: str,
    settings: Settings,
    max_bytes: int,
    available: int,
    check_cancelled: Callable[[], None],
) -> tuple[str, str]:
    """Send the request and wait for the child to end; returns its stdout and stderr. Raises
    BundleError when the child exceeds a limit."""
    max_seconds, started = settings.load_timeout_seconds, time.monotonic()
    unsent: str | None = request
    while True:
        try:
            return child.communicate(unsent, timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            unsent = None  # the next call continues to send it
        check_cancelled()
        if max_seconds and time.monotonic() - started > max_seconds:
            raise BundleError(
                "timeout",
                f"Its trial did not end within {max_seconds:g} s. If this model needs longer, "
                "raise --load-timeout-seconds; otherwise its graphs may never end.",
            )
        too_large = memory.private_bytes(child.pid) > max_bytes + _BASE_BYTES
        if too_large or memory.available_bytes() < _MIN_FREE_SHARE * available:
            raise _out_of_memory(max_bytes)


def _out_of_memory(max_bytes: int) -> BundleError:
    return BundleError(
        "memory",
        f"It needs more memory than a load may use, {max_bytes >> 20} MiB. Give the server more "
        "memory, or raise --load-memory-mib if more is available.",
    )


# The child.


def main() -> None:
    """Read a request from stdin, try the bundle that it names, write the response to stdout."""
    request = json.load(sys.stdin)
    _limit_harm(request["parent"])
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is not part of the response
    logging.disable(logging.WARNING)  # the server logs the same when it loads the version itself
    with responses:
        json.dump(_respond(request), responses)
        responses.flush()
        os._exit(0)  # without waiting for threads that the graphs have started


def _limit_harm(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends its child
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("The server has exited.")
    os.nice(_NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _respond(request: dict[str, Any]) -> dict[str, Any]:
    settings, max_bytes = Settings(**request["settings"]), request["max_bytes"]
    on_cpu = False
    try:
        engine = SessionFactory.from_settings(settings)
        on_cpu = engine.on_cpu
        base_bytes = memory.private_bytes()
        if on_cpu:
            limit = memory.data_bytes() + max_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        previous = request["previous"] and ModelProfile.from_json(request["previous"])
        verified = bundle.load(Path(request["path"]), max_bytes)
        loaded = load_model(verified, engine, settings, previous)
        del verified  # the server does not keep the files' bytes either
    except (BundleError, ConfigError, MemoryError, OSError) as error:
        no_memory = on_cpu and any(text in str(error) for text in _OUT_OF_MEMORY)
        if isinstance(error, MemoryError) or no_memory:
            error = _out_of_memory(max_bytes)
        return {"rejected": getattr(error, "reason", "engine"), "message": str(error)}
    return {
        "digest": loaded.digest,
        "profile": loaded.profile.to_json(),
        "bytes": max(0, memory.private_bytes() - base_bytes),
    }


if __name__ == "__main__":
    main()
