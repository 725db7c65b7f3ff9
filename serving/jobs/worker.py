"""What one process does: its share of the shards, each under its lock, each at most once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import operator
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NamedTuple, Self

import numpy as np

from latentd.errors import BadData, LatentdError
from latentd.jobs import exit_codes, outputs
from latentd.jobs.inputs import Rows
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import LocalReconstructor, Reconstruct, Results, joined, load_bundle
from latentd.jobs.remote import RemoteReconstructor, Server
from latentd.jobs.store import ShardManifest, Store

WORST: Final = 32
"""Of a shard, for the contact sheet: so many of its largest reconstruction errors are kept."""


class Done(NamedTuple):
    """Rows that are done; how many of them are quarantined, and how many were committed before."""

    rows: int = 0
    quarantined: int = 0
    kept: int = 0


Report = Callable[[Done], None]
"""Is called again and again, with what was done since the last time."""


def make_shard(
    plan: Plan, shard: int, rows: Rows, reconstruct: Reconstruct, report: Report
) -> Results:
    """Run one shard's rows. Raises BadData."""
    wanted = plan.shard(shard)
    parts = []
    chunks = rows.read(wanted.start, wanted.stop, plan.batch_rows)
    for part in reconstruct(chunks):
        parts.append(part)
        report(Done(len(part.rows) + len(part.bad), len(part.bad)))
    results = joined(parts)
    if len(results.rows) + len(results.bad) != len(wanted):
        raise BadData(
            f"Shard {shard}: {len(wanted)} rows went in, {len(results.rows)} came out and "
            f"{len(results.bad)} were quarantined."
        )
    return results


def commit_shard(plan: Plan, shard: int, results: Results, store: Store) -> ShardManifest:
    """Write one shard, whose lock is held, for good. Raises OSError."""
    wanted = plan.shard(shard)
    manifest = ShardManifest(
        plan=plan.digest,
        shard=shard,
        start=wanted.start,
        stop=wanted.stop,
        rows=len(results.rows),
        quarantined=results.bad,
        outside=int(np.count_nonzero(results.outside)),
        worst=_worst(results),
        bytes=0,
        sha256="",
    )
    write = functools.partial(outputs.write, results, plan)
    return store.commit(shard, write, outputs.count, manifest)


def _worst(results: Results) -> list[tuple[int, float, int]]:
    """The largest reconstruction errors: the first row that has each, and how many have it."""
    error = results.reconstruction_error
    if error is None:
        return []
    lowest_first, at, counts = np.unique(-error, return_index=True, return_counts=True)
    rows = results.rows[at]
    found = zip(rows.tolist(), (-lowest_first).tolist(), counts.tolist(), strict=True)
    return list(itertools.islice(found, WORST))


class BackgroundWriter:
    """Does what it is given while its owner goes on; `with` waits for the last of it.

    What a piece raises comes out at the next one, or at the end of a block that raises nothing.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Begin a piece once the one before is done: no more than one waits in memory."""
        self._wait()
        self._last = self._pool.submit(work)

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
    """How a worker ended: the exit status it leads to, and the sentence."""

    status: int
    what: str


class Failed(Exception):
    """A worker failed; its words and exit status."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.what)


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker process needs to know to begin.

    bundle: folder of the bundle; provider: as in engine.Engine
    server: to go there instead
    """

    output: Path
    plan: Plan
    bundle: Path | None
    provider: str
    server: Server | None = None


def work(
    plan: Plan, shards: Iterable[int], store: Store, reconstruct: Reconstruct, report: Report
) -> None:
    """Commit every one of these shards that is not, whoever else works on them.

    Those that another process holds are waited for at the end. Raises BadData, OSError, and what
    `reconstruct` does.
    """
    rows = Rows(plan, store.folder)
    try:
        with BackgroundWriter() as behind:  # a shard is written while the next one is made
            held = [
                i
                for i in shards
                if not attempt(plan, i, rows, store, reconstruct, report, False, behind.do)
            ]
        for i in held:
            attempt(plan, i, rows, store, reconstruct, report, True)
    finally:
        rows.close()


def attempt(
    plan: Plan,
    index: int,
    rows: Rows,
    store: Store,
    reconstruct: Reconstruct,
    report: Report,
    wait: bool,
    do: Callable[[Callable[[], None]], None] = operator.call,
) -> bool:
    """Commit a shard, unless it is; False: another process is at it, and `wait` was not wanted.

    do: has the commit done; the shard's lock is held until it is.
    """
    with contextlib.ExitStack() as holding:
        if not holding.enter_context(store.locked(index, wait)):
            return False
        done = store.committed(index, thorough=True)
        if done is not None:
            rows_of_it = len(plan.shard(index))
            report(Done(rows_of_it, len(done.quarantined), kept=rows_of_it))
            return True
        results = make_shard(plan, index, rows, reconstruct, report)
        lock = holding.pop_all()

    def commit() -> None:
        with lock:
            commit_shard(plan, index, results, store)

    try:
        do(commit)
    except BaseException:  # of the commit before this one, perhaps: this one then never began
        lock.close()
        raise
    return True


def reconstruction(setting: WorkerConfig) -> Reconstruct:
    """What `setting` says shall run the model."""
    if setting.bundle is None:
        assert setting.server is not None
        return RemoteReconstructor(setting.server, setting.plan.bundle, setting.plan.wanted)
    loaded = load_bundle(setting.bundle)
    return LocalReconstructor(
        loaded, setting.plan.wanted, setting.provider, setting.plan.batch_rows
    )


def terminate_as_exit() -> None:
    """SIGTERM unwinds the stack, so that what is half-written is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(exit_codes.TERMINATED)

    signal.signal(signal.SIGTERM, stop)


def process(setting: WorkerConfig, shards: list[int], parent: Connection) -> None:
    """A worker process's whole life. Sends a Done now and then, and a Failure at the end if there
    was one; ends by itself once its parent is gone."""
    terminate_as_exit()
    logging.getLogger("latentd").setLevel(logging.ERROR)  # what there is to say, the parent says
    failure: Failure | None = None
    report = ProgressThrottle(parent.send)
    try:
        store = Store(setting.output, setting.plan.digest, outputs.suffix(setting.plan))
        with contextlib.closing(store):
            work(setting.plan, shards, store, reconstruction(setting), report)
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
    """A sentence for the person at the terminal."""
    if isinstance(error, LatentdError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "Interrupted. Repeat the command to go on."
    if isinstance(error, FileNotFoundError):
        return (
            f"A file or folder of the job is gone: {error.filename or error}. Somebody removed it, "
            "or the disk lost it. Repeat the command: it makes again only what is missing."
        )
    if isinstance(error, OSError):
        return (
            f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}. "
            "Finished shards are kept: remove the cause, then repeat the command to go on."
        )
    if isinstance(error, MemoryError):
        return (
            "There is not enough memory. Finished shards are kept: repeat the command with a "
            "smaller --batch-rows or fewer --processes."
        )
    return (
        f"{_place(error)}{type(error).__name__}: {error}. This is a fault of latentd itself; "
        "please report it. Finished shards are kept."
    )


def _place(error: BaseException) -> str:
    """Where in this project an unforeseen error came from: "serving/jobs/shard.py, line 40: "."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}serving{os.sep}" in frame.filename]
    if not ours:
        return ""
    path = ours[-1].filename
    return f"{path[path.rindex(f'{os.sep}serving{os.sep}') + 1 :]}, line {ours[-1].lineno}: "


class ProgressThrottle:
    """A Report that passes sums on, a few times a second."""

    def __init__(self, send: Report) -> None:
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
