"""A version is tried before it is loaded, in a process of its own, where it can harm nothing.

What a graph does is known only once it has run: it may never end, take all memory or bring its
process down. So a child process does all that loading takes (files verified, sessions made, costs
measured, golden vectors run) under limits of time and memory, and reports what it measured. The
server then only makes the sessions and runs the golden vectors once more.

The child is the first that the kernel kills when memory runs out, runs at a low priority and ends
with its parent. Its memory is bounded from both sides: it may map only so much (RLIMIT_DATA; not
on a GPU, whose driver maps more than it takes), and the parent watches what it has.
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
from latentd.models.loading import Measurements, prepare
from latentd.models.trial_results import TrialResult
from latentd.runtime import memory
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05
_SHARE: Final = 0.8  # of the memory that is available, which a load may take
_LEFT: Final = 0.05  # of it, that must be left at any time
_BARE: Final = 128 << 20  # bytes that the child may have before it has loaded anything
_LAST_WORDS: Final = 2000  # characters of a trial's stderr that are logged when it crashes
_NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1
_NO_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate", "Cannot allocate memory")


def most_bytes(settings: Settings) -> int:
    """What the load of one version may take here and now, its files included."""
    return settings.load_memory_mib << 20 or int(_SHARE * memory.available_bytes())


def run(
    path: Path,
    settings: Settings,
    before: Measurements | None,
    go_on: Callable[[], None],
) -> TrialResult:
    """Try the bundle in `path`; blocks.

    settings: with the provider that was chosen. before: as `prepare` takes it. go_on: called every
    50 ms; what it raises ends the trial. Raises BundleError with what the child refused the bundle
    for, or timeout, memory or crash.
    """
    available, most = memory.available_bytes(), most_bytes(settings)
    request = {
        "path": str(path),
        "settings": dataclasses.asdict(settings),
        "before": before and before.to_json(),
        "most_bytes": most,
        "parent": os.getpid(),
    }
    with _child() as child:
        try:
            said, complained = _watched(
                child, json.dumps(request), settings, most, available, go_on
            )
        finally:
            child.kill()
    if child.returncode == -signal.SIGKILL:
        raise _too_large(most)
    try:
        answer = json.loads(said)
    except ValueError:
        code = child.returncode
        why = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        log.error("The last words of a trial: %s", complained[-_LAST_WORDS:].strip())
        raise BundleError(
            "crash", f"Trying it ended its process ({why}): ONNX Runtime cannot bear this graph."
        ) from None
    if "refused" in answer:
        raise BundleError(answer["refused"], answer["what"])
    # Each worker is going to hold as much.
    if answer["bytes"] * settings.workers > int(_SHARE * memory.available_bytes()):
        raise BundleError(
            "memory",
            f"It takes {answer['bytes'] >> 20} MiB in each of {settings.workers} worker(s), and "
            f"{memory.available_bytes() >> 20} MiB are available. Give the server more memory or "
            "fewer --workers, or serve fewer versions (--keep-versions).",
        )
    return TrialResult(answer["digest"], Measurements.from_json(answer["measurements"]))


def _child() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "latentd.models.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _watched(
    child: subprocess.Popen[str],
    request: str,
    settings: Settings,
    most: int,
    available: int,
    go_on: Callable[[], None],
) -> tuple[str, str]:
    """What the child has written at its end, to stdout and stderr, if it gets there within its
    limits."""
    seconds, began = settings.load_timeout_seconds, time.monotonic()
    given: str | None = request
    while True:
        try:
            return child.communicate(given, timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            given = None  # it goes on being sent
        go_on()
        if seconds and time.monotonic() - began > seconds:
            raise BundleError(
                "timeout",
                f"Its trial had not ended after {seconds:g} s. If this model needs longer, raise "
                "--load-timeout-seconds; else its graphs may never end.",
            )
        over = memory.private_bytes(child.pid) > most + _BARE
        if over or memory.available_bytes() < _LEFT * available:
            raise _too_large(most)


def _too_large(most: int) -> BundleError:
    return BundleError(
        "memory",
        f"It needs more memory than a load may take here, {most >> 20} MiB. Give the server more, "
        "or raise --load-memory-mib where there is more.",
    )


# The child.


def main() -> None:
    """Read a request from stdin, try what it names, write the answer to stdout."""
    request = json.load(sys.stdin)
    _limit_harm(request["parent"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.WARNING)  # the server says it when it loads the version itself
    with answers:
        json.dump(_answer(request), answers)
        answers.flush()
        os._exit(0)  # without waiting for anything that the graphs have begun


def _limit_harm(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("The server is gone.")
    os.nice(_NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    settings, most = Settings(**request["settings"]), request["most_bytes"]
    on_cpu = False
    try:
        engine = SessionFactory.from_settings(settings)
        on_cpu = engine.on_cpu
        had = memory.private_bytes()
        if on_cpu:
            allowed = memory.data_bytes() + most
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        before = request["before"] and Measurements.from_json(request["before"])
        loaded = bundle.load(Path(request["path"]), most)
        prepared = prepare(loaded, engine, settings, before)
        del loaded  # nor does the server keep the files' bytes
    except (BundleError, ConfigError, MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or (on_cpu and any(n in str(error) for n in _NO_MEMORY)):
            error = _too_large(most)
        return {"refused": getattr(error, "reason", "engine"), "what": str(error)}
    return {
        "digest": prepared.digest,
        "measurements": prepared.measurements.to_json(),
        "bytes": max(0, memory.private_bytes() - had),
    }


if __name__ == "__main__":
    main()
