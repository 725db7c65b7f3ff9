"""Runs one server process from start to stop.

`start` takes its steps in this order: metrics, provider, listener, port, models, SERVING. SIGTERM
undoes them in reverse. Nothing runs from a constructor. Each step is a method with a comment on why
it has its place.
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
from typing import TYPE_CHECKING, Final

import grpc
from prometheus_client import CollectorRegistry

from latentd import images
from latentd.errors import ConfigError
from latentd.metrics import Metrics
from latentd.models.poller import Poller
from latentd.models.repository import Repository
from latentd.models.watchdog import EngineWatchdog
from latentd.open_inference.service import OpenInferenceService
from latentd.process.heartbeat import Heartbeat
from latentd.process.metrics_server import expose
from latentd.rpc.service import VaeService
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings
from latentd.transport import handlers, listener, reflection, tracing
from latentd.transport.admission import AdmissionController
from latentd.transport.auth import TokenStore, require_scope, require_token
from latentd.transport.call_recorder import CallRecorder
from latentd.transport.health import LIVENESS, READINESS, STARTUP, Health
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses
from latentd.transport.tls import Certificates

if TYPE_CHECKING:
    from latentd.http.listener import HttpListener

log = logging.getLogger(__name__)

SERVICES: Final = (handlers.VAE, handlers.OPEN_INFERENCE)
HEALTH_NAMES: Final = ("", READINESS, *(service.full_name for service in SERVICES))
"""Service names that report NOT_SERVING while the server accepts no work."""

_HANDSHAKE_MS: Final = 10_000
_IDLE_MS: Final = 300_000
_LAG_POLL_SECONDS: Final = 0.25
_WATCHDOG_POLL_SECONDS: Final = 0.5


class Server:
    """One process that serves bundles; `await serve()` runs it.

    Every step of `start` registers how to undo it; `stop` undoes the steps in reverse order.
    """

    shares_port = False  # with the other workers of one supervisor

    def __init__(self, settings: Settings, trial_results: Path | None = None) -> None:
        """trial_results: as Repository takes it."""
        self.settings, self._trial_results = settings, trial_results
        self.metrics = Metrics(CollectorRegistry())
        self.port = 0  # known once bound
        self.metrics_port = 0
        self.http_port: int | None = None  # None: no HTTP
        self._http: HttpListener | None = None
        self._heartbeat = Heartbeat()
        self._health = Health()
        self._stop = asyncio.Event()
        self._graceful = True  # SIGTERM gives clients time to notice; Ctrl-C does not
        self._accepting = False
        self._healthy = True
        self._exit_stack = AsyncExitStack()

    async def serve(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain. Raises ConfigError if it cannot start."""
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
        """Take every step up to SERVING."""
        images.ignore_pillow_warnings()  # clients' files must not fill the log
        self._start_metrics()
        self._measure_loop_lag()
        self._read_secrets()
        self._choose_engine()
        await self._make_listener()
        await self._open_port()
        await self._load_models()
        self._start_accepting()
        self._announce()

    async def stop(self) -> None:
        """Undo every step: calls in flight have the drain time to finish."""
        await self._exit_stack.aclose()
        log.info("Stopped.")

    async def stopping(self) -> None:
        """Return after `request_stop` was called."""
        await self._stop.wait()

    def request_stop(self, graceful: bool = True) -> None:
        """Make `serve` stop; idempotent. graceful: wait --lame-duck-seconds first."""
        self._graceful = self._graceful and graceful
        self._stop.set()

    def is_serving(self, service: str) -> bool:
        """Whether a service of grpc.health.v1 serves; callable from any thread. In a process that
        makes no progress none does: a gRPC health check would get no response."""
        return self._heartbeat.is_recent() and self._health.is_serving(service)

    def _start_metrics(self) -> None:
        # First, so that metrics are available while the models load and when loading fails.
        host, port = self.settings.host, self.settings.metrics_port
        self.metrics_port, close = expose(self.metrics.registry, self.is_serving, host, port)
        self._exit_stack.push_async_callback(asyncio.to_thread, close)

    def _read_secrets(self) -> None:
        # Before anything slow, so that a wrong file is reported at once.
        settings = self.settings
        self._tokens = TokenStore(Path(settings.tokens)) if settings.tokens else None
        self._credentials: grpc.ServerCredentials | None = None
        if settings.tls_cert:
            self._credentials = self._certificates().credentials()
        elif self._tokens and settings.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("Bearer tokens are sent in plain text. Set --tls-cert and --tls-key.")

    def _certificates(self) -> Certificates:
        settings = self.settings
        client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        return Certificates(Path(settings.tls_cert), Path(settings.tls_key), client_ca)

    def _choose_engine(self) -> None:
        # Before the port opens: without the requested CUDA the server must not start.
        self._engine = SessionFactory.from_settings(self.settings)
        self.repository = Repository(self.settings, self._engine, self.metrics, self._trial_results)
        self._exit_stack.push_async_callback(self.repository.close)
        self._poller = Poller(self.repository.scan, self.settings.poll_seconds)
        self._exit_stack.callback(self._poller.stop)

    async def _make_listener(self) -> None:
        settings = self.settings
        # The tracer before the port, so that it is closed after the last call has ended.
        self._tracer = await asyncio.to_thread(tracing.create_tracer, settings.tracing)
        if self._tracer is not None:
            self._exit_stack.push_async_callback(asyncio.to_thread, self._tracer.close)
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Compressed messages arrive as they are; `messages` rejects them.
            ("grpc.per_message_decompression", 0),
            ("grpc.max_concurrent_streams", 1024),
            # Between half of this limit and the limit, gRPC rejects calls at random.
            ("grpc.max_metadata_size", handlers.MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            # Idle connections must not use up that limit: those without a TLS and HTTP/2 handshake,
            # and those without calls. Clients reconnect with their next call.
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            *_connection_age_options(settings),
            # gRPC's default, five minutes, answers the keepalive of latentd.client with GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            # Without this, the window of each stream grows with the connection's bandwidth, up to
            # 256 MiB, and fills with messages that the server has not read.
            ("grpc.http2.bdp_probe", 0),
            # A client whose machine is gone sends nothing: keepalive closes its connections.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.ping_timeout_ms", 20_000),  # the default of gRPC (1.85) is a minute
            ("grpc.keepalive_permit_without_calls", 1),
            # Two servers on one port are a mistake, unless they are workers of one supervisor.
            ("grpc.so_reuseport", int(self.shares_port)),
        ]
        responses = PendingResponses(settings.unsent_response_bytes, self.metrics)
        repository = self.repository
        requests = PartialRequests(
            settings.partial_request_bytes, self.metrics, loads=lambda: repository.load_transitions
        )
        requests.start()
        self._exit_stack.push_async_callback(asyncio.to_thread, requests.stop)
        self.listener = await asyncio.to_thread(
            listener.create_listener, settings.listener, options, responses, requests
        )
        if settings.http_port is not None:
            self._make_http(requests, responses)
        self._heartbeat.listener = self.listener
        self._open_handlers = self._health.handlers()
        if settings.reflection:
            reflection_handlers = reflection.handlers(SERVICES)
            if self._tokens is not None:
                reflection_handlers = require_token(reflection_handlers, self._tokens, self.metrics)
            self._open_handlers |= reflection_handlers
        self.listener.handlers = self._open_handlers | handlers.not_ready(*SERVICES)
        self._set_health(False)

    def _make_http(self, requests: PartialRequests, responses: PendingResponses) -> None:
        # Imported here: a server without the flag loads none of it.
        from latentd.http.app import create_app
        from latentd.http.calls import Calls
        from latentd.http.listener import HttpListener

        settings = self.settings
        calls = Calls(
            lambda: self.listener.handlers, requests, responses, settings.max_message_bytes
        )
        self._http = HttpListener(
            create_app(calls, self.repository, lambda: f":{self.port}"),
            settings.max_connections,
            self._certificates() if settings.tls_cert else None,
        )

    async def _open_port(self) -> None:
        # Before the models load, for health checks: probes must tell loading from dead. Other calls
        # get UNAVAILABLE until `_load_models` is done.
        settings = self.settings
        self.port = self.listener.bind(address(settings.host, settings.port), self._credentials)
        if not self.port:
            raise port_in_use(settings.host, settings.port)
        await self.listener.start()
        if self._http and settings.http_port is not None:
            self.http_port = self._http.bind(settings.host, settings.http_port, self.shares_port)
            if not self.http_port:
                raise port_in_use(settings.host, settings.http_port, "--http-port")
            self._http.start()
        self._exit_stack.push_async_callback(self._close_ports)

    async def _close_ports(self) -> None:
        # Both at a time: their calls in flight have the same time to finish.
        grace = self.settings.drain_seconds
        stops = [self.listener.stop(grace)]
        if self._http:
            stops.append(self._http.stop(grace))
        await asyncio.gather(*stops)

    async def _load_models(self) -> None:
        await self.repository.load()
        service = VaeService(self.repository, self._engine, self.settings, self.metrics)
        admission = AdmissionController(self.repository)

        def recorder(method: str) -> CallRecorder:
            return CallRecorder(method, self.metrics, self.settings.access_log, self._tracer)

        open_inference = OpenInferenceService(service, self.repository, self.settings)
        methods = {
            path: handler
            for described, implementation in zip(SERVICES, (service, open_inference), strict=True)
            for path, handler in handlers.handlers(
                described, implementation, admission, self.metrics, recorder
            ).items()
        }
        if self._tokens is not None:
            methods = require_scope(methods, self._tokens, self.metrics)
        self.listener.handlers = self._open_handlers | methods

    def _start_accepting(self) -> None:
        # Objects made so far live as long as the process: exclude them from garbage collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)  # calls leave no cycles: collect rarely
        self._poller.start()
        self.metrics.workers.set(1)
        self._exit_stack.push_async_callback(self._stop_accepting)
        self._watch_engine()

    def _watch_engine(self) -> None:
        watchdog = EngineWatchdog(
            self.repository, self.settings.watchdog_seconds, on_cpu=self._engine.on_cpu
        )

        async def watch() -> None:
            while not (fault := watchdog.fatal_error()):
                models_to_probe = watchdog.models_to_probe()
                if models_to_probe or not self._healthy:
                    broken = await asyncio.to_thread(watchdog.self_test, models_to_probe)
                    self.metrics.faults.labels("broken").set(bool(broken))
                    if self._healthy != (not broken):
                        self._healthy = not broken
                        self._set_health(self._accepting)
                await asyncio.sleep(_WATCHDOG_POLL_SECONDS)
            log.critical("%s This process cannot recover and must be restarted.", fault)
            self.metrics.faults.labels("hung").set(1)
            self._on_hung()

        self._exit_stack.callback(asyncio.create_task(watch()).cancel)

    def _on_hung(self) -> None:
        # A liveness probe then restarts the process.
        self._healthy = False
        self._set_health(self._accepting)
        self._health.set(LIVENESS, False)

    def _announce(self) -> None:
        # Last: from now on clients send calls.
        self._set_health(True)
        announce(self.settings.host, self.port, self.metrics_port, self.http_port)

    async def _stop_accepting(self) -> None:
        # Clients that watch health go to other servers; the calls they still send are served.
        self._poller.stop()
        log.info("Shutting down: reporting NOT_SERVING, then draining in-flight calls.")
        self._set_health(False)
        if self._graceful:
            await asyncio.sleep(self.settings.lame_duck_seconds)
        self._health.close()

    def _set_health(self, serving: bool) -> None:
        """Report whether the server accepts work; NOT_SERVING while a model is broken."""
        self._accepting = serving
        if serving:
            self._health.set(STARTUP, True)
        for name in HEALTH_NAMES:
            self._health.set(name, serving and self._healthy)

    def _measure_loop_lag(self) -> None:
        async def watch() -> None:
            while True:
                due = time.perf_counter() + _LAG_POLL_SECONDS
                await asyncio.sleep(_LAG_POLL_SECONDS)
                self.metrics.loop_lag.set(max(0.0, time.perf_counter() - due))
                self._heartbeat.beat()

        self._exit_stack.callback(asyncio.create_task(watch()).cancel)


def _connection_age_options(settings: Settings) -> list[tuple[str, int]]:
    if not settings.max_connection_age_seconds:
        return []
    return [
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)),
        # In-flight calls have as long as they have in a drain.
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
    ]


def run(server: Server) -> None:
    """Run a server in an event loop of its own until it stops. Raises ConfigError."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:  # not available on every platform; asyncio has its own loop
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(server.serve())
    if server.repository.hangs:
        # ONNX Runtime aborts a process that exits while one of its threads still runs.
        logging.shutdown()
        os._exit(0)


def address(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_in_use(host: str, port: int, flag: str = "--port") -> ConfigError:
    """The error for a port that cannot be opened."""
    return ConfigError(
        f"Cannot listen on {address(host, port)}: address in use or not available. "
        f"Choose another with {flag} (0: any free port) or --host."
    )


def announce(host: str, port: int, metrics_port: int, http_port: int | None) -> None:
    """Log where clients and Prometheus find the server."""
    if http_port is not None:
        log.info("HTTP on port %d; /docs lists what is there.", http_port)
    grpc, http = address(host, port), address(host, metrics_port)
    log.info("Listening on %s, metrics on http://%s/metrics.", grpc, http)
