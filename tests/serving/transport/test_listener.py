"""Two ways to take calls off the network, and the choice between them."""

from __future__ import annotations

import logging

import grpc
import pytest
from grpc._cython import cygrpc
from prometheus_client import CollectorRegistry

from latentd.errors import ConfigError
from latentd.metrics import Metrics
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport import listener
from latentd.transport.listener import CoreListener, choose
from latentd.transport.listener_aio import AioListener
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses


@pytest.fixture
def bounds():
    metrics = Metrics(CollectorRegistry())
    return PendingResponses(1 << 20, metrics), PartialRequests(1 << 20, metrics)


def test_the_core_is_driven_directly_where_a_rehearsal_works(bounds):
    assert isinstance(choose("auto", [], *bounds), CoreListener)


def test_the_rehearsal_does_not_go_through_a_proxy(bounds, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert isinstance(choose("auto", [], *bounds), CoreListener)


def test_grpc_aio_can_be_asked_for(bounds):
    assert isinstance(choose("aio", [], *bounds), AioListener)


@pytest.fixture(params=["no core", "another core"])
def _unknown_grpcio(request, monkeypatch):
    """A grpcio whose unpublished part is missing, or not what we know."""
    if request.param == "no core":
        monkeypatch.setattr(listener, "cygrpc", None)
    else:
        monkeypatch.delattr(listener.cygrpc, "SendStatusFromServerOperation")


@pytest.mark.usefixtures("_unknown_grpcio")
def test_an_unknown_grpcio_is_served_by_grpc_aio(start_server, toy_bundles):
    server = start_server(toy_bundles)
    assert isinstance(server.server._listener, AioListener)
    with grpc.insecure_channel(server.target) as channel:
        assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x.tensor.data


@pytest.mark.usefixtures("_unknown_grpcio")
def test_asked_for_the_core_and_not_getting_it_is_a_refusal(bounds):
    with pytest.raises(ConfigError, match="--listener core cannot be had"):
        choose("core", [], *bounds)


def test_grpc_aio_logs_no_traceback_of_a_call_that_was_over_before_its_answer(bounds, caplog):
    choose("aio", [], *bounds)
    theirs = logging.getLogger("grpc._cython.cygrpc")
    for error in (cygrpc.ExecuteBatchError("gone"), ValueError("broken")):
        try:
            raise error
        except Exception:
            theirs.exception("%s raised in core", type(error).__name__)
    said = [record.getMessage() for record in caplog.records if record.name == theirs.name]
    assert said == ["ValueError raised in core"]


def test_a_method_that_does_not_exist_is_unimplemented(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/vae.v1.VaeService/Nothing")
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"")
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_call_that_is_cancelled_is_not_counted_as_answered(server):
    stub_count = {"method": "StreamSamples", "model": "toy"}
    with grpc.insecure_channel(server.target) as channel:
        stream = VaeServiceStub(channel).StreamSamples(
            pb.StreamSamplesRequest(count=10**12, chunk_rows=16)
        )
        next(stream)
        stream.cancel()
        # The next call is answered by the same thread, after it has heard of the cancellation.
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    assert server.metric("latentd_requests_total", code="OK", **stub_count) == 0
