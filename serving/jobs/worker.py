"""A worker process: it makes and commits its shards, each under its lock, each at most once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import operator
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from latentd.errors import BadData, LatentdError
from latentd.jobs import exit_codes, outputs
from latentd.jobs.inputs import RowReader
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import (
    LocalReconstructor,
    Reconstruct,
    Results,
    concat_results,
    empty_columns,
    load_bundle,
)
from latentd.jobs.remote import RemoteReconstructor, RemoteServer
from latentd.jobs.store import ShardManifest, Store

WORST: Final = 32
"""Number of a shard's largest reconstruction errors in its manifest, for the contact sheet."""


class Done(NamedTuple):
    """Number of rows done, of these quarantined, and of these committed before this run."""

    rows: int = 0
    quarantined: int = 0
    kept: int = 0


ProgressCallback = Callable[[Done], None]
"""Called repeatedly, with the rows done since the last call."""


def make_shard(
    plan: Plan, shard: int, rows: RowReader, reconstruct: Reconstruct, report: ProgressCallback
) -> Results:
    """Run one shard's rows. Raises BadData."""
    wanted = plan.shard(shard)
    parts = []
    chunks = rows.read(wanted.start, wanted.stop)
    for part in reconstruct(chunks):
        parts.append(part)
        report(Done(len(part.rows) + len(part.bad), len(part.bad)))
    results = concat_results(parts)
    if not len(results.rows) and plan.shapes:
        empty: dict[str, Any] = empty_columns(plan.wanted, plan.data, plan.shapes)
        results = dataclasses.replace(results, **empty)
    if len(results.rows) + len(results.bad) != len(wanted):
        raise BadData(
            f"Row count mismatch in shard {shard}: {len(wanted)} rows read, "
            f"{len(results.rows)} reconstructed, {len(results.bad)} quarantined."
        )
    return results


def commit_shard(plan: Plan, shard: int, results: Results, store: Store) -> ShardManifest:
    """Write and commit one shard; requires its lock. Raises OSError."""
    wanted = plan.shard(shard)
    manifest = ShardManifest(
        plan=plan.digest,
        shard=shard,
        start=wanted.start,
        stop=wanted.stop,
        rows=len(results.rows),
        quarantined=results.bad,
        rows_outside_range=int(np.count_nonzero(results.values_outside_range)),
        outliers=outputs.count_outliers(results, plan),
        worst=_worst(results),
        bytes=0,
        sha256="",
    )
    write = functools.partial(outputs.write, results, plan)
    return store.commit(shard, write, outputs.count, manifest)


def _worst(results: Results) -> list[tuple[int, float, int]]:
    """The largest reconstruction errors per value, so that large rows do not come first: the first
    row with each, and the number of such rows."""
    error = results.reconstruction_error
    if error is None:
        return []
    per_value = error / results.shapes.prod(axis=1)
    lowest_first, at, counts = np.unique(-per_value, return_index=True, return_counts=True)
    rows = results.rows[at]
    found = zip(rows.tolist(), (-lowest_first).tolist(), counts.tolist(), strict=True)
    return list(itertools.islice(found, WORST))


class BackgroundWriter:
    """Runs tasks in a thread, one at a time, while the caller continues.

    A task's error is raised by the next `submit`, or at the end of the `with` block, which waits
    for the last task. A `with` block that itself raises keeps its own error.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._last: Future[None] | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Start a task once the previous one is done: at most one waits in memory."""
        self._wait()
        self._last = self._pool.submit(task)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._wait()


_REPORT_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Failure:
    """How a worker failed: the exit status and the message."""

    status: int
    message: str


class WorkerFailed(Exception):
    """A worker failed."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker process needs to start.

    bundle: its folder; None: `server` runs the model. provider: as in engine.SessionFactory
    """

    output: Path
    plan: Plan
    bundle: Path | None
    provider: str
    server: RemoteServer | None = None


def run_shards(
    plan: Plan,
    shards: Iterable[int],
    store: Store,
    reconstruct: Reconstruct,
    report: ProgressCallback,
) -> None:
    """Commit each of these shards that is not committed. Other processes may do the same.

    Shards that another process has locked come last, with a wait. Raises BadData, OSError, and what
    `reconstruct` raises.
    """
    rows = RowReader(plan, store.folder, reconstruct.consecutive)
    try:
        with BackgroundWriter() as writer:  # writes a shard while the next one is made
            busy = [
                i
                for i in shards
                if not process_shard(
                    plan, i, rows, store, reconstruct, report, False, writer.submit
                )
            ]
        for i in busy:
            process_shard(plan, i, rows, store, reconstruct, report, True)
    finally:
        rows.close()


def process_shard(
    plan: Plan,
    index: int,
    rows: RowReader,
    store: Store,
    reconstruct: Reconstruct,
    report: ProgressCallback,
    wait: bool,
    submit: Callable[[Callable[[], None]], None] = operator.call,
) -> bool:
    """Commit a shard unless it is committed. False: another process holds its lock; not `wait`.

    submit: runs the commit; the shard's lock is held until the commit is done.
    """
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(store.locked(index, wait)):
            return False
        committed = store.committed(index, thorough=True)
        if committed is not None:
            count = len(plan.shard(index))
            report(Done(count, len(committed.quarantined), kept=count))
            return True
        results = make_shard(plan, index, rows, reconstruct, report)
        lock = stack.pop_all()

    def commit() -> None:
        with lock:
            commit_shard(plan, index, results, store)

    try:
        submit(commit)
    except BaseException:  # perhaps from the previous commit; this one was then not started
        lock.close()
        raise
    return True


def create_reconstructor(config: WorkerConfig) -> Reconstruct:
    """What runs the model: this process or a server."""
    if config.bundle is None:
        assert config.server is not None
        return RemoteReconstructor(config.server, config.plan.bundle, config.plan.wanted)
    loaded = load_bundle(config.bundle)
    batch_rows = config.plan.rows_per_batch(config.plan.data.default)
    return LocalReconstructor(loaded, config.plan.wanted, config.provider, batch_rows)


def exit_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, which removes temporary files."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(exit_codes.TERMINATED)

    signal.signal(signal.SIGTERM, stop)


def worker_main(config: WorkerConfig, shards: list[int], parent: Connection) -> None:
    """The main function of a worker process. It sends a Done several times a second, and a Failure
    at the end if it failed. It exits if its parent has exited."""
    exit_on_sigterm()
    logging.getLogger("latentd").setLevel(logging.ERROR)  # the parent process logs
    logging.getLogger("latentd.client").setLevel(logging.WARNING)  # a lost server
    failure: Failure | None = None
    report = ProgressThrottle(parent.send)
    try:
        store = Store(config.output, config.plan.digest, outputs.suffix(config.plan))
        with contextlib.closing(store):
            run_shards(config.plan, shards, store, create_reconstructor(config), report)
        report.flush()
    except BrokenPipeError:
        failure = Failure(exit_codes.SOFTWARE, "")
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failure = Failure(exit_codes.status(error), explain(error))
    if failure is not None:
        with contextlib.suppress(OSError):
            parent.send(failure)
        raise SystemExit(failure.status)


def explain(error: BaseException) -> str:
    """The error as a message for the user."""
    if isinstance(error, LatentdError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "Interrupted. Rerun the command to resume."
    if isinstance(error, FileNotFoundError):
        return (
            f"A file or folder of the job is missing: {error.filename or error}. It was removed, "
            "or the disk lost it. Rerun the command: it makes only what is missing."
        )
    if isinstance(error, OSError):
        return (
            f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}. "
            "Finished shards are kept: fix the cause, then rerun the command to resume."
        )
    if isinstance(error, MemoryError):
        return (
            "Out of memory. Finished shards are kept: rerun the command with a smaller "
            "--batch-rows or fewer --processes."
        )
    return (
        f"{_location(error)}{type(error).__name__}: {error}. This is a bug in latentd; please "
        "report it. Finished shards are kept."
    )


def _location(error: BaseException) -> str:
    """Where in latentd an unexpected error was raised: "latentd/jobs/worker.py, line 40: "."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    if not own:
        return ""
    path = "latentd" / Path(own[-1].filename).relative_to(package)
    return f"{path}, line {own[-1].lineno}: "


class ProgressThrottle:
    """A ProgressCallback that sums up and calls `send` a few times a second."""

    def __init__(self, send: ProgressCallback) -> None:
        self._send, self._done = send, Done()
        self._sent = time.monotonic()

    def __call__(self, done: Done) -> None:
        self._done = Done(*map(operator.add, self._done, done))
        if time.monotonic() - self._sent > _REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._send(self._done)
        self._done = Done()
        self._sent = time.monotonic()
