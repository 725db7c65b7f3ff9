"""Starts several workers that share a port, restarts those that die, and stops them together.

This process serves only metrics and health, over HTTP. It starts no gRPC, because a process with
gRPC's threads must not start others. The kernel distributes connections among the workers
(`reuseport`); a connection stays with its worker.
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
from latentd.process.server import announce, port_in_use
from latentd.process.worker_metrics import WorkerMetrics
from latentd.settings import Settings
from latentd.transport.health import READINESS, STARTUP

log = logging.getLogger(__name__)

EXIT_CRASHES: Final = 70
"""EX_SOFTWARE: too many workers crashed."""
_MAX_CRASHES: Final = 3  # for each worker, in the window
_CRASH_WINDOW_SECONDS: Final = 60.0
_MIN_BACKOFF_SECONDS: Final = 0.1  # before a restart; doubled with each recent crash
_MAX_BACKOFF_SECONDS: Final = 5.0
_STOP_SLACK_SECONDS: Final = 5.0  # that a worker may take beyond its drain time


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection[Any, Any]
    metrics: Connection[Any, Any]
    wants_load: bool = False
    loading: bool = False
    ready: bool = False
    healthy: bool = False  # and reports it
    failure: str = ""  # why it cannot start


class Supervisor:
    """The parent process of the workers; `run` does everything."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._restarts_due: list[tuple[float, int]] = []  # when to restart which worker
        self._crashes: deque[float] = deque()
        self._metrics = WorkerMetrics()
        self._restart_count = 0
        self._all_ready_once = False  # whether all were ready at the same time
        self._announced = False
        self._stopping = 0  # the signal that stops the server; 0: none
        self._exit = 0
        self._start_failure: ConfigError | None = None  # why the first worker cannot start

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status. Raises ConfigError."""
        with ExitStack() as stack:
            self._listen_to_signals(stack)
            shared = trial_results.shared_folder(self._settings.state)
            self._trial_results = stack.enter_context(shared)
            registry = CollectorRegistry()
            self._restarts_metric = restarts(registry)
            registry.register(self._metrics)
            settings = self._settings
            self._metrics_port, close = expose(
                registry, self.is_serving, settings.host, settings.metrics_port
            )
            stack.callback(close)
            self._poll_metrics(stack)
            self._reserve_ports(stack)
            for number in range(1, settings.workers + 1):
                if not self._stopping:  # starting many takes long; a signal must end it
                    self._start(number)
            while not self._stopping:
                self._handle_events()
            self._stop()
        if self._start_failure:
            raise self._start_failure
        return self._exit

    def is_serving(self, service: str) -> bool:
        """Whether a service of grpc.health.v1 serves in all workers; callable from any thread."""
        if service == STARTUP:  # also while workers are replaced
            return self._announced
        if service == READINESS and self._stopping:
            return False
        return self._metrics.is_serving(service)

    def _listen_to_signals(self, stack: ExitStack) -> None:
        wakeup, self._signal_conn = socket.socketpair()
        wakeup.setblocking(False)
        self._signal_conn.setblocking(False)
        stack.callback(wakeup.close)
        stack.callback(self._signal_conn.close)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wakeup.fileno()))
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = self._stopping or number

    def _poll_metrics(self, stack: ExitStack) -> None:
        stopping = threading.Event()
        stack.callback(stopping.set)
        target = self._metrics.poll
        threading.Thread(target=target, args=(stopping,), name="metrics", daemon=True).start()

    def _reserve_ports(self, stack: ExitStack) -> None:
        settings = self._settings
        port = self._reserve(stack, settings.port, "--port")
        http_port = settings.http_port
        if http_port is not None:
            http_port = self._reserve(stack, http_port, "--http-port")
        self._settings = replace(settings, port=port, http_port=http_port)

    def _reserve(self, stack: ExitStack, port: int, flag: str) -> int:
        """Bind a port without listening: workers share it, other programs cannot. Returns its
        number."""
        host = self._settings.host
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
                port = alone.getsockname()[1]
            held = stack.enter_context(socket.socket(family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Connections of a server of one process, which has just ended, linger on the port.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((address[0], port, *address[2:]))
            # From now on it would let others listen on the port.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            raise port_in_use(host, port, flag) from None
        return port

    def _start(self, number: int) -> _Worker:
        parent_conn, child_conn = self._context.Pipe()
        metrics_conn, child_metrics_conn = self._context.Pipe()
        process = self._context.Process(
            target=worker.main,
            args=(
                *(self._settings, number, child_conn, child_metrics_conn),
                *(self._all_ready_once, self._trial_results),
            ),
            name=f"latentd-worker-{number}",
        )
        process.start()
        child_conn.close()
        child_metrics_conn.close()
        self._metrics.add(metrics_conn)
        self._workers.append(_Worker(number, process, parent_conn, metrics_conn))
        return self._workers[-1]

    def _handle_events(self) -> None:
        """Wait for messages, exits and due restarts, and handle them."""
        now = time.monotonic()
        next_start = min((due for due, _ in self._restarts_due), default=None)
        timeout = None if next_start is None else max(0.0, next_start - now)
        by_pipe = {one.pipe: one for one in self._workers}
        by_sentinel = {one.process.sentinel: one for one in self._workers}
        events = wait([*by_pipe, *by_sentinel, self._signal_conn], timeout)
        for source in events:
            if isinstance(source, Connection):
                self._on_message(by_pipe[source])
        for source in events:
            if isinstance(source, int):
                self._on_exit(by_sentinel[source])
        for due, number in list(self._restarts_due):
            if due <= time.monotonic() and not self._stopping:
                self._restarts_due.remove((due, number))
                self._restart(number)
        if not self._stopping:
            self._grant_load_slot()

    def _on_message(self, one: _Worker) -> bool:
        """Handle a message of the worker; returns False if there are no more."""
        try:
            message = one.pipe.recv()
        except (EOFError, ConnectionResetError):
            return False  # it is dead; its sentinel reports that too
        if isinstance(message, worker.StartFailure):
            one.failure = message.reason
        elif message == worker.LOAD_REQUEST:
            one.wants_load = True
        elif message == worker.READY:
            one.loading, one.ready = False, True
            log.info("Worker %d is ready (process %d).", one.number, one.process.pid)
            if self._all_ready_once:
                self._send(one, True)
            elif all(w.ready for w in self._workers) and not self._restarts_due:
                self._all_ready_once = True
                for each in self._workers:
                    self._send(each, True)
        elif message == worker.HEALTH_SET:
            one.healthy = True
            if not self._announced and all(w.healthy for w in self._workers):
                self._announced = True
                # Last, when every worker reports healthy: from now on clients send calls.
                settings = self._settings
                announce(settings.host, settings.port, self._metrics_port, settings.http_port)
        return True

    def _grant_load_slot(self) -> None:
        if not any(one.loading for one in self._workers):
            for one in self._workers:
                if one.wants_load:
                    one.wants_load, one.loading = False, True
                    self._send(one, worker.LOAD_GRANT)
                    return

    def _send(self, one: _Worker, what: object) -> None:
        # If the worker is dead, its sentinel reports that too.
        with suppress(BrokenPipeError, ConnectionResetError):
            one.pipe.send(what)

    def _on_exit(self, one: _Worker) -> None:
        """Handle the exit of a worker."""
        one.process.join()
        while one.pipe.poll() and self._on_message(one):
            pass
        one.pipe.close()
        self._workers.remove(one)
        self._metrics.remove(one.metrics)
        code = one.process.exitcode or 0
        if self._stopping:
            return
        if one.failure and not self._all_ready_once:
            self._start_failure, self._stopping = ConfigError(one.failure), signal.SIGTERM
            return
        ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        why = one.failure.removesuffix(".") or ended
        log.error("Worker %d died: %s.", one.number, why)
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - _CRASH_WINDOW_SECONDS:
            self._crashes.popleft()
        if len(self._crashes) > _MAX_CRASHES * self._settings.workers:
            log.error(
                "Too many worker crashes (%d in %.0f s); exiting.",
                *(len(self._crashes), _CRASH_WINDOW_SECONDS),
            )
            self._exit, self._stopping = EXIT_CRASHES, signal.SIGTERM
            return
        backoff = min(_MIN_BACKOFF_SECONDS * 2 ** (len(self._crashes) - 1), _MAX_BACKOFF_SECONDS)
        self._restarts_due.append((now + backoff, one.number))

    def _restart(self, number: int) -> None:
        self._restart_count += 1
        self._restarts_metric.inc()
        pid = self._start(number).process.pid
        text = "Restarted worker %d as process %d (restart %d)."
        log.info(text, number, pid, self._restart_count)

    def _stop(self) -> None:
        """Pass the signal to the workers and wait for them; kill those that do not stop."""
        settings = self._settings
        for one in self._workers:
            os.kill(one.process.pid or 0, self._stopping)
        seconds = settings.lame_duck_seconds + settings.drain_seconds + _STOP_SLACK_SECONDS
        until = time.monotonic() + seconds
        for one in self._workers:
            one.process.join(max(0.0, until - time.monotonic()))
            if one.process.is_alive():
                log.error("Worker %d did not stop in time; sending SIGKILL.", one.number)
                one.process.kill()
                one.process.join()
        log.info("Stopped.")
