"""What a call cost, told to its caller in the trailers and to the operator in the log."""

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


def told(call) -> tuple[str, re.Match[str]]:
    """The request id and the timings in a call's trailers."""
    trailers = {key: value for key, value in call.trailing_metadata() or ()}
    timing = TIMING.fullmatch(trailers["server-timing"])
    assert timing is not None, trailers
    return trailers["x-request-id"], timing


def test_an_answer_says_what_it_cost(stub):
    _, call = stub.Sample.with_call(pb.SampleRequest(count=3))
    request_id, timing = told(call)
    assert re.fullmatch("[0-9a-f]{9,}", request_id)
    queue, run, total = map(float, timing.group(1, 2, 3))
    assert queue >= 0
    assert run > 0
    assert queue + run <= total + 0.002  # each is rounded
    assert timing.group(4, 5, 6) == ("3", "toy", "1")


def test_rows_that_pass_two_lanes_are_counted_once(stub):
    _, call = stub.Reconstruct.with_call(pb.ReconstructRequest(x=rows(5)))
    assert told(call)[1][4] == "5"


def test_draws_count_as_rows_for_they_are_run(stub):
    _, call = stub.Score.with_call(pb.ScoreRequest(x=rows(5), draws=7))
    assert told(call)[1][4] == "35"


def test_a_stream_says_at_its_end_what_all_of_it_cost(stub):
    call = stub.StreamSamples(pb.StreamSamplesRequest(count=1000, chunk_rows=10))
    assert sum(len(codec.from_tensor(answer.x.tensor)) for answer in call) == 1000
    _, timing = told(call)
    assert timing.group(4, 5, 6) == ("1000", "toy", "1")


def test_a_call_that_runs_nothing_says_so(stub):
    _, call = stub.GetModel.with_call(pb.GetModelRequest())
    _, timing = told(call)
    assert timing.group(1, 2, 4) == ("0.000", "0.000", "0")


def test_a_caller_finds_its_own_id_again_also_on_a_refusal(stub):
    metadata = (("x-request-id", "cart/7f.3:a=1"),)
    _, call = stub.Sample.with_call(pb.SampleRequest(count=1), metadata=metadata)
    assert told(call)[0] == "cart/7f.3:a=1"
    with pytest.raises(grpc.RpcError) as refused:
        stub.Sample(pb.SampleRequest(count=0), metadata=metadata)
    assert told(refused.value)[0] == "cart/7f.3:a=1"


@pytest.mark.parametrize("given", ['no", "spaces', "x" * 129, "{}", "%s", "<b>"])
def test_an_id_that_could_break_a_log_is_replaced(stub, given):
    _, call = stub.GetModel.with_call(pb.GetModelRequest(), metadata=(("x-request-id", given),))
    assert re.fullmatch("[0-9a-f]{9,}", told(call)[0])


def test_no_two_calls_are_given_one_id():
    assert len({CallStats().request_id for _ in range(1000)}) == 1000


def test_passes_are_remembered_for_who_asks_and_never_without_end():
    stats = CallStats()
    stats.record("decoder", 1, 0.0, 1.0, 3.0)
    assert stats.spans is None
    stats.spans = []
    for _ in range(1000):
        stats.record("decoder", 1, 0.0, 1.0, 3.0)
    assert len(stats.spans) == 64
    assert stats.totals() == (1001, 1001.0, 2002.0)


def lines_about_calls(caplog) -> list[dict[str, object]]:
    """As `--log-format json` writes them."""
    written = [json.loads(logs._Json(None).format(r)) for r in caplog.records]
    return [line for line in written if line["logger"] == "latentd.transport.call_recorder"]


@pytest.mark.parametrize(
    ("says", "codes"),
    [("none", []), ("errors", ["INVALID_ARGUMENT"]), ("all", ["OK", "INVALID_ARGUMENT"])],
)
def test_calls_are_logged_as_the_operator_wants_it(start_server, toy_bundles, caplog, says, codes):
    caplog.set_level(logging.INFO, "latentd")
    server = start_server(toy_bundles, access_log=says)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        stub.Sample(pb.SampleRequest(count=2), metadata=(("x-request-id", "mine"),))
        with pytest.raises(grpc.RpcError):
            stub.Encode(pb.EncodeRequest())
    lines = lines_about_calls(caplog)
    assert [line["code"] for line in lines] == codes
    if says == "all":
        line = lines[0]
        assert line["request_id"] == "mine"
        assert (line["method"], line["model"], line["version"], line["rows"]) == (
            *("Sample", "toy", 1, 2),
        )
        assert 0 < line["run_ms"] <= line["total_ms"]
        assert line["queue_ms"] >= 0
        assert str(line["message"]).endswith("request id mine.")


def test_what_fails_inside_is_logged_under_the_id_that_the_caller_gets(
    start_server, toy_bundles, caplog, monkeypatch
):
    server = start_server(toy_bundles)

    def broken(*args: object) -> None:
        raise RuntimeError("of the house")

    monkeypatch.setattr(server.server.repository, "find", broken)
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as failed:
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    request_id, _ = told(failed.value)
    assert request_id in failed.value.details()
    (line,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert line.fields == {"request_id": request_id, "method": "Sample"}
    assert "of the house" in logs._Json(None).format(line)
