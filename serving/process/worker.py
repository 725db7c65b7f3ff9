"""Runs one of several server processes that share a port, under a supervisor.

The two exchange messages over a pipe:

    worker -> supervisor   LOAD_REQUEST   before it loads its models
    supervisor -> worker   LOAD_GRANT     one worker at a time may load
    worker -> supervisor   READY          it could serve
    supervisor -> worker   True or False  what health must report
    worker -> supervisor   HEALTH_SET     health reports it
    worker -> supervisor   StartFailure   it cannot start
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from latentd import logs
from latentd.errors import EXIT_CONFIG, ConfigError
from latentd.process import reuseport, worker_metrics
from latentd.process.metrics_server import HEALTH_PATHS
from latentd.process.server import Server, run
from latentd.settings import Settings
from latentd.transport.health import LIVENESS

log = logging.getLogger(__name__)

LOAD_REQUEST: Final = "load request"
READY: Final = "ready"
LOAD_GRANT: Final = "load grant"
HEALTH_SET: Final = "message"


@dataclass(frozen=True)
class StartFailure:
    """Why a worker cannot start: the message of a ConfigError."""

    reason: str


EXIT_HUNG: Final = 70  # EX_SOFTWARE


class Worker(Server):
    """A server without a metrics port, whose health is that of all workers.

    number: among the workers of its supervisor, from 1 on.
    is_replacement: it replaces a worker that died. It opens the port only when it can serve:
    clients must not reach a process that loads while others are ready.
    """

    shares_port = True

    def __init__(
        self,
        settings: Settings,
        number: int,
        pipe: Connection[Any, Any],
        metrics_pipe: Connection[Any, Any],
        is_replacement: bool,
        trial_results: Path | None,
    ) -> None:
        super().__init__(settings, trial_results)
        self._number = number
        self._pipe, self._metrics_pipe, self._is_replacement = pipe, metrics_pipe, is_replacement
        self._load_granted = asyncio.Event()

    async def start(self) -> None:
        """As any server, but load when the supervisor allows it; health waits for the others."""
        self._listen_to_supervisor()
        self._start_metrics()
        self._measure_loop_lag()
        self._read_secrets()
        self._choose_engine()
        await self._make_listener()
        if not self._is_replacement:
            await self._open_port()
        # One worker at a time, so that they do not disturb each other's measurements.
        self._pipe.send(LOAD_REQUEST)
        await self._load_granted.wait()
        await self._load_models()
        if self._is_replacement:
            self._set_health(True)
            await self._open_port()
        self._start_accepting()
        self._announce()

    async def _open_port(self) -> None:
        await super()._open_port()
        # Every worker: the program is lost when the last socket of the port closes.
        problem = reuseport.take_turns(self.port, self.settings.workers)
        if self.http_port is not None:
            reuseport.take_turns(self.http_port, self.settings.workers)
        if problem and self._number == 1 and not self._is_replacement:
            log.info("A hash gives connections to workers, unevenly if few: %s.", problem)

    def _start_metrics(self) -> None:
        # In a thread: the event loop may be late, and must not wait for the supervisor.
        args = (self._metrics_pipe, self.metrics, self._health_by_service)
        target = worker_metrics.respond
        threading.Thread(target=target, args=args, name="metrics", daemon=True).start()

    def _health_by_service(self) -> Mapping[str, bool]:
        # A replacement that loads has no port, so no client reaches it: it has no say in readiness.
        services = HEALTH_PATHS.values() if self.port else (LIVENESS,)
        return {service: self.is_serving(service) for service in services}

    def _announce(self) -> None:
        self._pipe.send(READY)

    def _on_hung(self) -> None:
        # The supervisor replaces it. An orderly exit would wait for the run.
        os._exit(EXIT_HUNG)

    def _listen_to_supervisor(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._on_message)
        self._exit_stack.callback(loop.remove_reader, self._pipe.fileno())

    def _on_message(self) -> None:
        try:
            message = self._pipe.recv()
        except EOFError:  # the supervisor was killed
            log.error("Supervisor exited; shutting down.")
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.request_stop()
            return
        if message == LOAD_GRANT:
            self._load_granted.set()
        elif not self._stop.is_set():
            self._set_health(message)
            self._pipe.send(HEALTH_SET)


def main(
    settings: Settings,
    number: int,
    pipe: Connection[Any, Any],
    metrics_pipe: Connection[Any, Any],
    is_replacement: bool,
    trial_results: Path | None,
) -> None:
    """Run a worker process until it stops. pipe: as above. metrics_pipe: on it the supervisor asks
    for this worker's metrics and health. trial_results: as Repository takes it."""
    logs.configure(settings.log_level, settings.log_format, number)
    try:
        run(Worker(settings, number, pipe, metrics_pipe, is_replacement, trial_results))
    except ConfigError as error:
        with suppress(OSError):  # the supervisor has exited
            pipe.send(StartFailure(str(error)))
        sys.exit(EXIT_CONFIG)
