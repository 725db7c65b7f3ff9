"""The server's life, in order: provider, health, models, port, SERVING; and on SIGTERM back again.

Nothing runs from a constructor. Each step is a method with a sentence on why it stands there.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import grpc
from prometheus_client import CollectorRegistry

from latentd.metrics import Metrics
from latentd.models.poller import Poller
from latentd.models.repository import Repository
from latentd.models.watchdog import EngineWatchdog
from latentd.process.metrics_server import expose
from latentd.process.port import address, announce, port_is_taken
from latentd.rpc.service import VaeService
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings
from latentd.transport import handlers, listener, reflection, tracing
from latentd.transport.admission import AdmissionController
from latentd.transport.auth import TokenStore, require_scope, require_token
from latentd.transport.call_recorder import CallRecorder
from latentd.transport.health import Health
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses
from latentd.transport.tls import Certificates

log = logging.getLogger(__name__)

HEALTH_NAMES: Final = ("", handlers.SERVICE, "readiness")
"""What turns NOT_SERVING while no work is taken. `liveness` only says that the loop answers."""

_HANDSHAKE_MS: Final = 10_000
_IDLE_MS: Final = 300_000
_LAG_SECONDS: Final = 0.25
_VITALS_SECONDS: Final = 0.5


class Server:
    """One process that serves bundles. `await serve()` is its whole life.

    Every step of `start` leaves behind how it is undone; `stop` undoes them last to first.
    """

    shares_port = False  # with other processes that were started together with this one

    def __init__(self, settings: Settings, trial_results: Path | None = None) -> None:
        """verdicts: a folder where workers share what they found out about versions."""
        self.settings, self._verdicts = settings, trial_results
        self.metrics = Metrics(CollectorRegistry())
        self.port = 0  # known once bound
        self.metrics_port = 0
        self._stop = asyncio.Event()
        self._patient = True  # SIGTERM leaves clients time to notice; Ctrl-C does not
        self._takes_work = False
        self._well = True
        self._undo = AsyncExitStack()

    async def serve(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain. Raises ConfigError when it cannot start."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.request_stop)
        loop.add_signal_handler(signal.SIGINT, self.request_stop, False)
        starting = asyncio.ensure_future(self.start())
        stopping = asyncio.ensure_future(self.stopping())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                starting.result()  # raises what start raised
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await self.stop()

    async def start(self) -> None:
        """Every step up to SERVING."""
        self._start_metrics()
        self._watch_loop()
        self._read_secrets()
        self._choose_engine()
        await self._make_listener()
        await self._open_port()
        await self._load_models()
        self._open_doors()
        self._announce()

    async def stop(self) -> None:
        """Every step back: no call that was accepted is lost inside the drain time."""
        await self._undo.aclose()
        log.info("Stopped.")

    async def stopping(self) -> None:
        """Return once a stop has been asked for."""
        await self._stop.wait()

    def request_stop(self, patient: bool = True) -> None:
        """Ask `serve` to stop; asking again changes nothing."""
        self._patient = self._patient and patient
        self._stop.set()

    def _start_metrics(self) -> None:
        # First, so that a server that is still loading, or fails to, can be watched doing so.
        page = expose(self.metrics.registry, self.settings.host, self.settings.metrics_port)
        self.metrics_port, close = page
        self._undo.push_async_callback(asyncio.to_thread, close)

    def _read_secrets(self) -> None:
        # Before anything that takes long: a wrong file is said at once.
        settings = self.settings
        self._tokens = TokenStore(Path(settings.tokens)) if settings.tokens else None
        self._credentials: grpc.ServerCredentials | None = None
        if settings.tls_cert:
            client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
            files = Certificates(Path(settings.tls_cert), Path(settings.tls_key), client_ca)
            self._credentials = files.credentials()
        elif self._tokens and settings.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("Bearer tokens are sent in plain text. Set --tls-cert and --tls-key.")

    def _choose_engine(self) -> None:
        # Before the port opens: asked for CUDA and not getting it ends here.
        self._engine = SessionFactory.from_settings(self.settings)
        self.repository = Repository(self.settings, self._engine, self.metrics, self._verdicts)
        self._undo.push_async_callback(self.repository.close)
        self._poller = Poller(self.repository.scan, self.settings.poll_seconds)
        self._undo.callback(self._poller.stop)

    async def _make_listener(self) -> None:
        settings = self.settings
        # The tracer before the port: it is closed after the last call has ended.
        self._tracer = await asyncio.to_thread(tracing.create_tracer, settings.tracing)
        if self._tracer is not None:
            self._undo.push_async_callback(asyncio.to_thread, self._tracer.close)
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Compressed messages come as they are, and `messages` refuses them.
            ("grpc.per_message_decompression", 0),
            ("grpc.max_concurrent_streams", 1024),
            # Between half of this and this gRPC would refuse by chance.
            ("grpc.max_metadata_size", handlers.MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            # A place among them is nobody's who says nothing: until TLS and HTTP/2 have begun, and
            # without a call. Clients connect again by themselves, with their next call.
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            *_age(settings),
            # gRPC's default, five minutes, answers our own client's keepalive with GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            # Else the window of every stream grows with the rate of its connection, to 256 MiB, and
            # fills with messages that nobody has asked for yet.
            ("grpc.http2.bdp_probe", 0),
            # Callers whose machine is gone say nothing: their connections, idle or not, are closed.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.ping_timeout_ms", 20_000),  # without it gRPC (1.85) waits a minute
            ("grpc.keepalive_permit_without_calls", 1),
            # Two servers on one port are a mistake, unless they were started as one.
            ("grpc.so_reuseport", int(self.shares_port)),
        ]
        responses = PendingResponses(settings.unsent_response_bytes, self.metrics)
        repository = self.repository
        requests = PartialRequests(
            settings.partial_request_bytes, self.metrics, loads=lambda: repository.load_transitions
        )
        requests.start()
        self._undo.push_async_callback(asyncio.to_thread, requests.stop)
        self.listener = await asyncio.to_thread(
            listener.create_listener, settings.listener, options, responses, requests
        )
        self._health = Health()
        self._health.set("liveness", True)
        self._own = self._health.handlers()
        if settings.reflection:
            reflected = reflection.handlers([handlers.SERVICE])
            if self._tokens is not None:
                reflected = require_token(reflected, self._tokens, self.metrics)
            self._own |= reflected
        self.listener.handlers = self._own | handlers.not_ready()
        self._set_health(False)

    async def _open_port(self) -> None:
        # Before the models load, for health alone: probes must tell loading from dead. All else is
        # answered UNAVAILABLE until `_load_models` is done.
        settings = self.settings
        self.port = self.listener.bind(address(settings.host, settings.port), self._credentials)
        if not self.port:
            raise port_is_taken(settings.host, settings.port)
        await self.listener.start()
        self._undo.push_async_callback(self.listener.stop, settings.drain_seconds)

    async def _load_models(self) -> None:
        await self.repository.load()
        service = VaeService(self.repository, self._engine, self.settings)
        admission = AdmissionController(self.repository)

        def recorder(method: str) -> CallRecorder:
            return CallRecorder(method, self.metrics, self.settings.access_log, self._tracer)

        methods = handlers.handlers(service, admission, self.metrics, recorder)
        if self._tokens is not None:
            methods = require_scope(methods, self._tokens, self.metrics)
        self.listener.handlers = self._own | methods

    def _open_doors(self) -> None:
        # What start-up left behind lives as long as the process: keep the collector off it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)  # calls leave no cycles behind: look seldom
        self._poller.start()
        self.metrics.workers.set(1)
        self._undo.push_async_callback(self._close_doors)
        self._watch_engine()

    def _watch_engine(self) -> None:
        vitals = EngineWatchdog(
            self.repository, self.settings.watchdog_seconds, on_cpu=self._engine.on_cpu
        )

        async def watch() -> None:
            while not (fault := vitals.fatal_error()):
                models_to_probe = vitals.models_to_probe()
                if models_to_probe or not self._well:
                    broken = await asyncio.to_thread(vitals.self_test, models_to_probe)
                    self.metrics.faults.labels("broken").set(bool(broken))
                    if self._well != (not broken):
                        self._well = not broken
                        self._set_health(self._takes_work)
                await asyncio.sleep(_VITALS_SECONDS)
            log.critical("%s Nothing but a new process helps.", fault)
            self.metrics.faults.labels("hung").set(1)
            self._on_hung()

        self._undo.callback(asyncio.create_task(watch()).cancel)

    def _on_hung(self) -> None:
        # Whoever looks at liveness restarts the process.
        self._well = False
        self._set_health(self._takes_work)
        self._health.set("liveness", False)

    def _announce(self) -> None:
        # Last: from now on clients come.
        self._set_health(True)
        announce(self.settings.host, self.port, self.metrics_port)

    async def _close_doors(self) -> None:
        # Clients that watch health leave by themselves; calls they still send are answered.
        self._poller.stop()
        log.info("Stopping: NOT_SERVING for clients to go elsewhere, then the calls under way.")
        self._set_health(False)
        if self._patient:
            await asyncio.sleep(self.settings.lame_duck_seconds)
        self._health.close()

    def _set_health(self, serving: bool) -> None:
        """Say that work is taken, which stays unsaid while the engine is broken."""
        self._takes_work = serving
        for name in HEALTH_NAMES:
            self._health.set(name, serving and self._well)

    def _watch_loop(self) -> None:
        async def watch() -> None:
            while True:
                due = time.perf_counter() + _LAG_SECONDS
                await asyncio.sleep(_LAG_SECONDS)
                self.metrics.loop_lag.set(max(0.0, time.perf_counter() - due))

        self._undo.callback(asyncio.create_task(watch()).cancel)


def _age(settings: Settings) -> list[tuple[str, int]]:
    if not settings.max_connection_age_seconds:
        return []
    return [
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)),
        # Calls under way have as long as they would have in a drain.
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
    ]


def run(server: Server) -> None:
    """A server's whole life, in an event loop of its own. Raises ConfigError."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:  # it is not made for every platform; asyncio's own loop serves as well
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(server.serve())
    if server.repository.hangs:
        # ONNX Runtime would abort the process where its threads still run at the end.
        logging.shutdown()
        os._exit(0)
