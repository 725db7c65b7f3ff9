"""The server's life, in order: provider, health, models, port, SERVING; and on SIGTERM back again.

Nothing runs from a constructor. Each step is a method with a sentence on why it stands there.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from serving import wire
from serving.engine import Engine
from serving.errors import ConfigError
from serving.metrics import Metrics
from serving.repository import Repository
from serving.service import VaeService
from serving.settings import Settings

log = logging.getLogger(__name__)

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH_NAMES: Final = ("", wire.SERVICE, "readiness")
"""What turns NOT_SERVING while no work is taken. `liveness` only says that the loop answers."""

_LAG_SECONDS: Final = 0.25


class Server:
    """One process that serves bundles. `await serve()` is its whole life.

    Every step of `start` leaves behind how it is undone; `stop` undoes them last to first.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry())
        self.port = 0  # known once bound
        self.metrics_port = 0
        self._stop = asyncio.Event()
        self._patient = True  # SIGTERM leaves clients time to notice; Ctrl-C does not
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
        self._choose_engine()
        await self._bind()
        await self._load_models()
        await self._open_doors()

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
        port, host = self.settings.metrics_port, self.settings.host
        try:
            http, _ = start_http_server(port, host, registry=self.metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"The metrics port {port} cannot be opened: {error.strerror}. "
                "Choose another with --metrics-port (0: any free one)."
            ) from None
        self.metrics_port = http.server_port
        self._undo.callback(http.server_close)
        self._undo.push_async_callback(asyncio.to_thread, http.shutdown)
        self._undo.callback(asyncio.create_task(self._watch_loop()).cancel)

    def _choose_engine(self) -> None:
        # Before the port opens: asked for CUDA and not getting it ends here.
        self._engine = Engine(self.settings.provider, self.settings.threads)
        self._repository = Repository(self.settings, self._engine, self.metrics)
        self._undo.push_async_callback(self._repository.close)

    async def _bind(self) -> None:
        # The port opens before the models load, for health alone: probes must tell loading from
        # dead. All else is answered UNAVAILABLE until `_load_models` is done.
        settings = self.settings
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.max_concurrent_streams", 4096),
                # gRPC's default, five minutes, answers our own client's keepalive with GOAWAY.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", 0),  # two servers on one port are a mistake, not a pool
            ]
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._set_health(NOT_SERVING)
        await self._health.set("liveness", SERVING)
        self._gate = _Gate()
        server.add_generic_rpc_handlers((self._gate,))
        if settings.reflection:
            names = (wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = f"{settings.host}:{settings.port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError:
            raise ConfigError(
                f"{address} cannot be opened: it is in use or not an address of this machine. "
                "Choose another with --port (0: any free one) or --host."
            ) from None
        await server.start()
        self._undo.push_async_callback(server.stop, settings.drain_seconds)

    async def _load_models(self) -> None:
        await self._repository.load()
        service = VaeService(self._repository, self._engine, self.settings)
        self._gate.open(wire.handlers(service, self.metrics))

    async def _open_doors(self) -> None:
        # What start-up left behind lives as long as the process: keep the collector off it.
        gc.collect()
        gc.freeze()
        await self._set_health(SERVING)
        self._undo.push_async_callback(self._close_doors)
        log.info(
            "Listening on %s:%d, metrics on http://%s:%d/metrics.",
            self.settings.host,
            self.port,
            self.settings.host,
            self.metrics_port,
        )

    async def _close_doors(self) -> None:
        # Clients that watch health leave by themselves; calls they still send are answered.
        log.info("Stopping: NOT_SERVING for clients to go elsewhere, then the calls under way.")
        await self._set_health(NOT_SERVING)
        if self._patient:
            await asyncio.sleep(self.settings.lame_duck_seconds)

    async def _set_health(self, status: int) -> None:
        for name in HEALTH_NAMES:
            await self._health.set(name, status)

    async def _watch_loop(self) -> None:
        """Measure how late the event loop wakes a timer."""
        while True:
            due = time.perf_counter() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.metrics.loop_lag.set(max(0.0, time.perf_counter() - due))


class _Gate(grpc.GenericRpcHandler):
    """Stands for the service until the models are loaded: answers UNAVAILABLE."""

    def __init__(self) -> None:
        self._behind: grpc.GenericRpcHandler | None = None

    def open(self, behind: grpc.GenericRpcHandler) -> None:
        self._behind = behind

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if self._behind is not None:
            return self._behind.service(details)
        if not details.method.startswith(f"/{wire.SERVICE}/"):
            return None
        return grpc.unary_unary_rpc_method_handler(_not_ready)


async def _not_ready(request: bytes, context: wire.Context) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is loading its models.")
