"""Fairness of work: calls of many rows or draws beside calls of one row, on a real server."""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.batching.batcher import Batcher
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub

SCORES, DRAWS = 500, 1024
SAMPLES = 200  # of one row
Codes = grpc.StatusCode


class Scorers:
    """So many Score calls at once; when one is answered, two more come: the queue stays full."""

    def __init__(self, stub: VaeServiceStub, calls: int) -> None:
        self._stub = stub
        self.ended: Counter[Codes] = Counter()
        self._changed = threading.Condition()
        self._under_way = 0
        self._going = True
        x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
        self._request = pb.ScoreRequest(x=codec.to_rows(x), draws=DRAWS, seed=1)
        for _ in range(calls):
            self._ask()

    def _ask(self) -> None:
        with self._changed:
            self._under_way += 1
        self._stub.Score.future(self._request).add_done_callback(self._end)

    def _end(self, call: grpc.Future) -> None:
        with self._changed:
            self.ended[call.code()] += 1
            self._under_way -= 1
            again = 2 if self._going and call.code() is Codes.OK else 0
            self._changed.notify_all()
        for _ in range(again):
            self._ask()

    def wait_for(self, code: Codes, calls: int) -> None:
        """Until so many calls have ended with this status."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended[code] >= calls, 60)

    def stop(self) -> None:
        with self._changed:
            self._going = False
            assert self._changed.wait_for(lambda: not self._under_way, 60)


def sampled(stub: VaeServiceStub) -> list[float]:
    """The seconds of each Sample of one row, one after another, slowest last. None may fail."""
    seconds = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        stub.Sample(pb.SampleRequest(count=1), timeout=30)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)


@pytest.mark.parametrize("batch_rows", [64, 4096])
def test_one_row_samples_beside_500_scores_are_all_answered(
    start_server, toy_bundles, record_property, batch_rows
):
    server = start_server(toy_bundles, max_batch_rows=batch_rows)
    with grpc.insecure_channel(server.target) as one, grpc.insecure_channel(server.target) as two:
        polite = VaeServiceStub(one)
        alone = sampled(polite)
        scorers = Scorers(VaeServiceStub(two), SCORES)
        try:
            scorers.wait_for(Codes.RESOURCE_EXHAUSTED, 1)  # the queue is full of draws
            beside = sampled(polite)
            scorers.wait_for(Codes.OK, 1)
        finally:
            scorers.stop()
        p99 = beside[int(SAMPLES * 0.99) - 1]
        figures = (
            f"p99 of {SAMPLES} Samples: {alone[int(SAMPLES * 0.99) - 1] * 1e3:.1f} ms alone, "
            f"{p99 * 1e3:.1f} ms beside {SCORES} Scores of {DRAWS} draws, 0 failed; "
            f"Scores answered {scorers.ended[Codes.OK]}, "
            f"refused {scorers.ended[Codes.RESOURCE_EXHAUSTED]}"
        )
        record_property("figures", figures)
        print(figures)
        assert set(scorers.ended) <= {Codes.OK, Codes.RESOURCE_EXHAUSTED}
        # A Sample waits for two batches, never for a Score; generous, for machines that are busy.
        assert p99 < max(0.3, 50 * alone[int(SAMPLES * 0.99) - 1])
        assert server.metric("latentd_shed_total", graph="decoder", reason="queue_full") > 0


def test_parts_of_a_stream_say_how_large_the_whole_call_is(start_server, toy_bundles, monkeypatch):
    seen, submit = [], Batcher.submit

    def spy(self, *args, work=0, **kwargs):
        seen.append((self.name, work))
        return submit(self, *args, work=work, **kwargs)

    server = start_server(toy_bundles)
    monkeypatch.setattr(Batcher, "submit", spy)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        list(stub.StreamSamples(pb.StreamSamplesRequest(count=30, chunk_rows=10)))
        assert seen == [("decoder", 30)] * 3
        seen.clear()
        x = codec.to_rows(np.zeros((5, 4, 4), np.uint8))
        list(stub.StreamReconstruct(iter([pb.StreamReconstructRequest(x=x)] * 2)))
    assert seen == [("encoder", 5), ("decoder", 5), ("encoder", 10), ("decoder", 10)]
