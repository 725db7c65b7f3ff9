"""One of several processes that share a port. Its supervisor says when to load, and speaks for all.

They talk over a pipe: the worker sends ASKS before it loads and READY when it could serve, the
supervisor sends LOAD when it is its turn, and then True or False for what health is to say, which
the worker answers with SAID. A worker that cannot start sends Refused, for its supervisor to say.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from latentd import logs
from latentd.errors import EXIT_CONFIG, ConfigError
from latentd.process import worker_metrics
from latentd.process.server import Server, run
from latentd.settings import Settings

log = logging.getLogger(__name__)

ASKS: Final = "asks"
READY: Final = "ready"
LOAD: Final = "load"
SAID: Final = "said"


@dataclass(frozen=True)
class RejectedVersion:
    """Why a worker cannot start: the sentence of a ConfigError."""

    reason: str


EXIT_HUNG: Final = 70  # EX_SOFTWARE


class Worker(Server):
    """A server without a page of metrics, whose health is that of all workers.

    replaces: this one stands in for another that died. It opens the port only when it can serve:
    callers must not be sent to a process that loads while others are ready.
    """

    shares_port = True

    def __init__(
        self,
        settings: Settings,
        pipe: Connection[Any, Any],
        questions: Connection[Any, Any],
        replaces: bool,
        trial_results: Path | None,
    ) -> None:
        super().__init__(settings, trial_results)
        self._pipe, self._questions, self._replaces = pipe, questions, replaces
        self._turn = asyncio.Event()

    async def start(self) -> None:
        """As any server, loading when it is its turn; health waits for the others."""
        self._follow()
        self._start_metrics()
        self._watch_loop()
        self._read_secrets()
        self._choose_engine()
        await self._make_listener()
        if not self._replaces:
            await self._open_port()
        # One worker at a time: what they measure of their graphs must not be each other.
        self._pipe.send(ASKS)
        await self._turn.wait()
        await self._load_models()
        if self._replaces:
            self._set_health(True)
            await self._open_port()
        self._open_doors()
        self._announce()

    def _start_metrics(self) -> None:
        # In a thread: the event loop may be late, and must not wait for the supervisor.
        answer, to = worker_metrics.answer, (self._questions, self.metrics)
        threading.Thread(target=answer, args=to, name="metrics", daemon=True).start()

    def _announce(self) -> None:
        self._pipe.send(READY)

    def _on_hung(self) -> None:
        # Its supervisor replaces it. Not by an orderly exit, which would wait for the run.
        os._exit(EXIT_HUNG)

    def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        self._undo.callback(loop.remove_reader, self._pipe.fileno())

    def _hear(self) -> None:
        try:
            said = self._pipe.recv()
        except EOFError:  # the supervisor was killed: nobody would ever stop this process
            log.error("The supervisor is gone; stopping.")
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.request_stop()
            return
        if said == LOAD:
            self._turn.set()
        elif not self._stop.is_set():
            self._set_health(said)
            self._pipe.send(SAID)


def main(
    settings: Settings,
    number: int,
    pipe: Connection[Any, Any],
    questions: Connection[Any, Any],
    replaces: bool,
    trial_results: Path | None,
) -> None:
    """The whole life of a worker process. pipe: as above; questions: the supervisor's, for what
    this worker has counted. verdicts: as Server's."""
    logs.configure(settings.log_level, settings.log_format, number)
    try:
        run(Worker(settings, pipe, questions, replaces, trial_results))
    except ConfigError as error:
        with suppress(OSError):  # the supervisor is gone
            pipe.send(RejectedVersion(str(error)))
        sys.exit(EXIT_CONFIG)
