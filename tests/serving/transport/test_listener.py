"""The two listeners, and the choice between them."""

from __future__ import annotations

import asyncio
import logging
import threading

import grpc
import pytest
from grpc._cython import cygrpc
from prometheus_client import CollectorRegistry

from latentd.calls import coroutines
from latentd.calls.coroutines import Future
from latentd.errors import ConfigError
from latentd.metrics import Metrics
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport import listener_core
from latentd.transport.handlers import CallStream, Handler
from latentd.transport.listener import create_listener
from latentd.transport.listener_aio import AioListener
from latentd.transport.listener_core import CoreListener
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses
from latentd.transport.status import Status


@pytest.fixture
def memory():
    metrics = Metrics(CollectorRegistry())
    return PendingResponses(1 << 20, metrics), PartialRequests(1 << 20, metrics)


def test_auto_is_core_when_its_self_test_succeeds(memory):
    assert isinstance(create_listener("auto", [], *memory), CoreListener)


def test_self_test_does_not_use_a_proxy(memory, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert isinstance(create_listener("auto", [], *memory), CoreListener)


def test_aio_is_grpc_aio(memory):
    assert isinstance(create_listener("aio", [], *memory), AioListener)


@pytest.fixture(params=["no core", "other core"])
def _unknown_grpcio(request, monkeypatch):
    """A grpcio whose unpublished part is missing or different."""
    if request.param == "no core":
        monkeypatch.setattr(listener_core, "cygrpc", None)
    else:
        monkeypatch.delattr(listener_core.cygrpc, "SendStatusFromServerOperation")


@pytest.mark.usefixtures("_unknown_grpcio")
def test_auto_is_grpc_aio_with_an_unknown_grpcio(start_server, toy_bundles):
    server = start_server(toy_bundles)
    assert isinstance(server.server.listener, AioListener)
    with grpc.insecure_channel(server.target) as channel:
        assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x.tensor.data


@pytest.mark.usefixtures("_unknown_grpcio")
def test_core_is_a_config_error_with_an_unknown_grpcio(memory):
    with pytest.raises(ConfigError, match="--listener core is not available"):
        create_listener("core", [], *memory)


def test_grpc_aio_logs_no_traceback_when_a_call_ends_before_its_response(memory, caplog):
    create_listener("aio", [], *memory)
    logger = logging.getLogger("grpc._cython.cygrpc")
    for error in (cygrpc.ExecuteBatchError("gone"), ValueError("broken")):
        try:
            raise error
        except Exception:
            logger.exception("%s raised in core", type(error).__name__)
    messages = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert messages == ["ValueError raised in core"]


def test_core_stops_after_the_handlers_of_calls_that_have_ended(memory):
    """A handler's answer to a listener that has stopped would abort the process."""
    entered, ended, release = threading.Event(), threading.Event(), threading.Event()
    cancelled: Future[None] = Future(on_cancel=ended.set)

    def compute() -> None:
        entered.set()
        release.wait(30)

    async def handle(stream: CallStream) -> Status:
        stream.context.on_cancel(cancelled)
        await coroutines.run_in_executor(compute)
        return Status(message=b"late")

    async def attempt() -> None:
        listener = CoreListener({"/late": Handler(handle)}, [], *memory)
        port = listener.bind("127.0.0.1:0")
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/late")(b"")
            await asyncio.to_thread(entered.wait, 30)
            call.cancel()
            await asyncio.to_thread(ended.wait, 30)
        stopping = asyncio.ensure_future(listener.stop(0))
        await asyncio.to_thread(listener._stopped.wait, 30)
        assert not stopping.done()
        release.set()
        await stopping

    asyncio.run(attempt())


def test_unknown_method_is_unimplemented(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/vae.v1.VaeService/Nothing")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"")
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancelled_call_is_not_counted_as_ok(server):
    labels = {"method": "StreamSamples", "model": "toy"}
    with grpc.insecure_channel(server.target) as channel:
        stream = VaeServiceStub(channel).StreamSamples(
            pb.StreamSamplesRequest(count=10**12, chunk_rows=16)
        )
        next(stream)
        stream.cancel()
        # The same thread answers the next call, after it has handled the cancellation.
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    assert server.metric("latentd_requests_total", code="OK", **labels) == 0
