"""The cost of a call, reported in the trailers and in the access log."""

from __future__ import annotations

import json
import logging
import re

import grpc
import numpy as np
import pytest

from latentd import codec, logs
from latentd.calls.stats import CallStats
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub

TIMING = re.compile(
    r'queue;dur=([\d.]+), run;dur=([\d.]+), total;dur=([\d.]+), rows;desc="(\d+)"'
    r'(?:, model;desc="(\w+)/(\d+)")?'
)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def rows(count: int) -> pb.Rows:
    return codec.to_rows(np.zeros((count, 4, 4), np.uint8))


def cost(call) -> tuple[str, re.Match[str]]:
    """The request id and the timings in a call's trailers."""
    trailers = {key: value for key, value in call.trailing_metadata() or ()}
    timing = TIMING.fullmatch(trailers["server-timing"])
    assert timing is not None, trailers
    return trailers["x-request-id"], timing


def test_trailers_report_the_cost_of_a_call(stub):
    _, call = stub.Sample.with_call(pb.SampleRequest(count=3))
    request_id, timing = cost(call)
    assert re.fullmatch("[0-9a-f]{9,}", request_id)
    queue, run, total = map(float, timing.group(1, 2, 3))
    assert queue >= 0
    assert run > 0
    assert queue + run <= total + 0.002  # each is rounded
    assert timing.group(4, 5, 6) == ("3", "toy", "1")


def test_rows_are_counted_once_when_two_graphs_run_them(stub):
    _, call = stub.Reconstruct.with_call(pb.ReconstructRequest(x=rows(5)))
    assert cost(call)[1][4] == "5"


def test_importance_samples_count_as_rows(stub):
    _, call = stub.Score.with_call(pb.ScoreRequest(x=rows(5), draws=7))
    assert cost(call)[1][4] == "35"


def test_trailers_of_a_stream_report_its_whole_cost(stub):
    call = stub.StreamSamples(pb.StreamSamplesRequest(count=1000, chunk_rows=10))
    assert sum(len(codec.from_tensor(answer.x.tensor)) for answer in call) == 1000
    _, timing = cost(call)
    assert timing.group(4, 5, 6) == ("1000", "toy", "1")


def test_call_that_runs_no_graph_reports_zero_cost(stub):
    _, call = stub.GetModel.with_call(pb.GetModelRequest())
    _, timing = cost(call)
    assert timing.group(1, 2, 4) == ("0.000", "0.000", "0")


def test_request_id_of_the_client_is_returned_on_success_and_on_error(stub):
    metadata = (("x-request-id", "cart/7f.3:a=1"),)
    _, call = stub.Sample.with_call(pb.SampleRequest(count=1), metadata=metadata)
    assert cost(call)[0] == "cart/7f.3:a=1"
    with pytest.raises(grpc.RpcError) as refused:
        stub.Sample(pb.SampleRequest(count=0), metadata=metadata)
    assert cost(refused.value)[0] == "cart/7f.3:a=1"


@pytest.mark.parametrize("given", ['no", "spaces', "x" * 129, "{}", "%s", "<b>"])
def test_request_id_is_replaced_when_it_could_break_a_log(stub, given):
    _, call = stub.GetModel.with_call(pb.GetModelRequest(), metadata=(("x-request-id", given),))
    assert re.fullmatch("[0-9a-f]{9,}", cost(call)[0])


def test_request_ids_are_unique():
    assert len({CallStats().request_id for _ in range(1000)}) == 1000


def test_batch_spans_are_kept_up_to_a_limit_when_asked_for():
    stats = CallStats()
    stats.record("decoder", 1, 0.0, 1.0, 3.0)
    assert stats.spans is None
    stats.spans = []
    for _ in range(1000):
        stats.record("decoder", 1, 0.0, 1.0, 3.0)
    assert len(stats.spans) == 64
    assert stats.totals() == (1001, 1001.0, 2002.0)


def access_log(caplog) -> list[dict[str, object]]:
    """The lines as `--log-format json` writes them."""
    written = [json.loads(logs._Json(None).format(r)) for r in caplog.records]
    return [line for line in written if line["logger"] == "latentd.transport.call_recorder"]


@pytest.mark.parametrize(
    ("kind", "codes"),
    [("none", []), ("errors", ["INVALID_ARGUMENT"]), ("all", ["OK", "INVALID_ARGUMENT"])],
)
def test_access_log_holds_the_calls_asked_for(start_server, toy_bundles, caplog, kind, codes):
    caplog.set_level(logging.INFO, "latentd")
    server = start_server(toy_bundles, access_log=kind)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        stub.Sample(pb.SampleRequest(count=2), metadata=(("x-request-id", "mine"),))
        with pytest.raises(grpc.RpcError):
            stub.Encode(pb.EncodeRequest())
    lines = access_log(caplog)
    assert [line["code"] for line in lines] == codes
    if kind == "all":
        line = lines[0]
        assert line["request_id"] == "mine"
        assert (line["method"], line["model"], line["version"], line["rows"]) == (
            *("Sample", "toy", 1, 2),
        )
        assert 0 < line["run_ms"] <= line["total_ms"]
        assert line["queue_ms"] >= 0
        assert str(line["message"]).endswith("request id mine.")


def test_internal_error_is_logged_under_the_request_id(
    start_server, toy_bundles, caplog, monkeypatch
):
    server = start_server(toy_bundles)

    def broken(*args: object) -> None:
        raise RuntimeError("internal bug")

    monkeypatch.setattr(server.server.repository, "find", broken)
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as failed:
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    request_id, _ = cost(failed.value)
    assert request_id in failed.value.details()
    (line,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert line.fields == {"request_id": request_id, "method": "Sample"}
    assert "internal bug" in logs._Json(None).format(line)
