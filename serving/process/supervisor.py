"""Several workers that share a port: started, counted, replaced when they die, stopped together.

This process serves nothing but the page of metrics, and starts no gRPC: what forks or spawns
beside gRPC's threads is asking for trouble. The kernel shares connections out among the workers
(SO_REUSEPORT); a connection stays with its worker.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from prometheus_client import CollectorRegistry

from latentd.errors import ConfigError
from latentd.metrics import restarts
from latentd.models import trial_results
from latentd.process import worker
from latentd.process.metrics_server import expose
from latentd.process.port import announce, port_is_taken
from latentd.process.worker_metrics import WorkerMetrics
from latentd.settings import Settings

log = logging.getLogger(__name__)

EXIT_CRASHES: Final = 70
"""EX_SOFTWARE: workers die faster than they can be replaced."""
_MOST_DEATHS: Final = 3  # for each worker, within
_LATELY: Final = 60.0  # seconds
_FIRST_PAUSE: Final = 0.1  # seconds before a replacement; doubled with each recent death
_LONGEST_PAUSE: Final = 5.0
_SLACK: Final = 5.0  # seconds that a worker may take beyond its own drain time


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection[Any, Any]
    metrics: Connection[Any, Any]
    waits: bool = False  # for its turn to load
    loads: bool = False
    ready: bool = False
    serves: bool = False  # and says so
    refused: str = ""  # why it cannot start


class Supervisor:
    """`run` is its whole life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._due: list[tuple[float, int]] = []  # when to start which replacement
        self._deaths: deque[float] = deque()
        self._metrics = WorkerMetrics()
        self._replaced = 0
        self._served = False  # all were ready once
        self._announced = False
        self._stopping = 0  # the signal that asked for it
        self._exit = 0
        self._refused: ConfigError | None = None  # why no worker can start, of the first

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status. Raises ConfigError."""
        with ExitStack() as undo:
            self._listen_to_signals(undo)
            self._verdicts = undo.enter_context(trial_results.shared_folder(self._settings.state))
            registry = CollectorRegistry()
            self._restarts = restarts(registry)
            registry.register(self._metrics)
            settings = self._settings
            self._metrics_port, close = expose(registry, settings.host, settings.metrics_port)
            undo.callback(close)
            self._keep_metrics(undo)
            self._reserve_port(undo)
            for number in range(1, settings.workers + 1):
                if not self._stopping:  # starting many takes long, stopping must not
                    self._start(number)
            while not self._stopping:
                self._wait()
            self._stop()
        if self._refused:
            raise self._refused
        return self._exit

    def _listen_to_signals(self, undo: ExitStack) -> None:
        ours, self._woken = socket.socketpair()
        ours.setblocking(False)
        self._woken.setblocking(False)
        undo.callback(ours.close)
        undo.callback(self._woken.close)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(ours.fileno()))
        for number in (signal.SIGTERM, signal.SIGINT):
            undo.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = self._stopping or number

    def _keep_metrics(self, undo: ExitStack) -> None:
        stopping = threading.Event()
        undo.callback(stopping.set)
        keep = self._metrics.keep
        threading.Thread(target=keep, args=(stopping,), name="metrics", daemon=True).start()

    def _reserve_port(self, undo: ExitStack) -> None:
        """Hold the port for the workers, without listening: what is not ours must not share it."""
        host, port = self._settings.host, self._settings.port
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
                port = alone.getsockname()[1]
            held = undo.enter_context(socket.socket(family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((address[0], port, *address[2:]))
        except OSError:
            raise port_is_taken(host, port) from None
        self._settings = replace(self._settings, port=port)

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        asks, answers = self._context.Pipe()
        process = self._context.Process(
            target=worker.main,
            args=(self._settings, number, theirs, answers, self._served, self._verdicts),
            name=f"latentd-worker-{number}",
        )
        process.start()
        theirs.close()
        answers.close()
        self._metrics.add(asks)
        self._workers.append(_Worker(number, process, ours, asks))
        return self._workers[-1]

    def _wait(self) -> None:
        """Until something happens, and what follows from it."""
        now = time.monotonic()
        next_start = min((due for due, _ in self._due), default=None)
        timeout = None if next_start is None else max(0.0, next_start - now)
        by_pipe = {one.pipe: one for one in self._workers}
        by_end = {one.process.sentinel: one for one in self._workers}
        happened = wait([*by_pipe, *by_end, self._woken], timeout)
        for source in happened:
            if isinstance(source, Connection):
                self._hear(by_pipe[source])
        for source in happened:
            if isinstance(source, int):
                self._bury(by_end[source])
        for due, number in list(self._due):
            if due <= time.monotonic() and not self._stopping:
                self._due.remove((due, number))
                self._replace(number)
        if not self._stopping:
            self._give_turn()

    def _hear(self, one: _Worker) -> bool:
        """Take what the worker says; False when it says no more."""
        try:
            said = one.pipe.recv()
        except (EOFError, ConnectionResetError):
            return False  # it is dead, which its sentinel says as well
        if isinstance(said, worker.RejectedVersion):
            one.refused = said.reason
        elif said == worker.ASKS:
            one.waits = True
        elif said == worker.READY:
            one.loads, one.ready = False, True
            log.info("Worker %d is ready (process %d).", one.number, one.process.pid)
            if self._served:
                self._tell(one, True)
            elif all(w.ready for w in self._workers) and not self._due:
                self._served = True
                for each in self._workers:
                    self._tell(each, True)
        elif said == worker.SAID:
            one.serves = True
            if not self._announced and all(w.serves for w in self._workers):
                self._announced = True
                # Last, once every worker says that it serves: from now on clients come.
                announce(self._settings.host, self._settings.port, self._metrics_port)
        return True

    def _give_turn(self) -> None:
        if not any(one.loads for one in self._workers):
            for one in self._workers:
                if one.waits:
                    one.waits, one.loads = False, True
                    self._tell(one, worker.LOAD)
                    return

    def _tell(self, one: _Worker, what: object) -> None:
        # Where it is dead, its sentinel says so as well.
        with suppress(BrokenPipeError, ConnectionResetError):
            one.pipe.send(what)

    def _bury(self, one: _Worker) -> None:
        """A worker has ended although nobody asked it to."""
        one.process.join()
        while one.pipe.poll() and self._hear(one):
            pass
        one.pipe.close()
        self._workers.remove(one)
        self._metrics.remove(one.metrics)
        code = one.process.exitcode or 0
        if self._stopping:
            return
        if one.refused and not self._served:
            self._refused, self._stopping = ConfigError(one.refused), signal.SIGTERM
            return
        ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        why = one.refused.removesuffix(".") or ended
        log.error("Worker %d died: %s.", one.number, why)
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - _LATELY:
            self._deaths.popleft()
        if len(self._deaths) > _MOST_DEATHS * self._settings.workers:
            log.error("%d workers died within %.0f s: giving up.", len(self._deaths), _LATELY)
            self._exit, self._stopping = EXIT_CRASHES, signal.SIGTERM
            return
        pause = min(_FIRST_PAUSE * 2 ** (len(self._deaths) - 1), _LONGEST_PAUSE)
        self._due.append((now + pause, one.number))

    def _replace(self, number: int) -> None:
        self._replaced += 1
        self._restarts.inc()
        pid = self._start(number).process.pid
        text = "Worker %d: process %d takes its place (replacement %d)."
        log.info(text, number, pid, self._replaced)

    def _stop(self) -> None:
        """Pass the signal on, and see that all end."""
        settings = self._settings
        for one in self._workers:
            os.kill(one.process.pid or 0, self._stopping)
        until = time.monotonic() + settings.lame_duck_seconds + settings.drain_seconds + _SLACK
        for one in self._workers:
            one.process.join(max(0.0, until - time.monotonic()))
            if one.process.is_alive():
                log.error("Worker %d does not stop; killing it.", one.number)
                one.process.kill()
                one.process.join()
        log.info("Stopped.")
