"""Fairness: calls of many rows or draws together with calls of one row, on a real server."""

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
    """Sends this many Score calls, then two more after each success, to keep the queue full."""

    def __init__(self, stub: VaeServiceStub, calls: int) -> None:
        self._stub = stub
        self.ended: Counter[Codes] = Counter()
        self._changed = threading.Condition()
        self._in_flight = 0
        self._running = True
        x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
        self._request = pb.ScoreRequest(x=codec.to_rows(x), draws=DRAWS, seed=1)
        for _ in range(calls):
            self._send()

    def _send(self) -> None:
        with self._changed:
            self._in_flight += 1
        self._stub.Score.future(self._request).add_done_callback(self._end)

    def _end(self, call: grpc.Future) -> None:
        with self._changed:
            self.ended[call.code()] += 1
            self._in_flight -= 1
            again = 2 if self._running and call.code() is Codes.OK else 0
            self._changed.notify_all()
        for _ in range(again):
            self._send()

    def wait_for(self, code: Codes, calls: int) -> None:
        """Wait until this many calls have ended with this status."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended[code] >= calls, 60)

    def stop(self) -> None:
        with self._changed:
            self._running = False
            assert self._changed.wait_for(lambda: not self._in_flight, 60)


def sample(server, stub: VaeServiceStub) -> tuple[list[float], list[int]]:
    """Samples of one row, made one after another; none may fail. Returns the seconds that each
    took and the decoder's batches meanwhile, both sorted."""
    seconds, batches = [], []
    for _ in range(SAMPLES):
        before = server.metric("latentd_batch_rows_count", graph="decoder")
        started = time.perf_counter()
        stub.Sample(pb.SampleRequest(count=1), timeout=120)
        seconds.append(time.perf_counter() - started)
        batches.append(int(server.metric("latentd_batch_rows_count", graph="decoder") - before))
    return sorted(seconds), sorted(batches)


@pytest.mark.parametrize("batch_rows", [64, 4096])
def test_samples_of_one_row_succeed_during_500_scores(
    start_server, toy_bundles, record_property, batch_rows
):
    server = start_server(toy_bundles, max_batch_rows=batch_rows)
    with grpc.insecure_channel(server.target) as one, grpc.insecure_channel(server.target) as two:
        stub = VaeServiceStub(one)
        alone, _ = sample(server, stub)
        scorers = Scorers(VaeServiceStub(two), SCORES)
        try:
            scorers.wait_for(Codes.RESOURCE_EXHAUSTED, 1)  # the queue is full of draws
            loaded, batches = sample(server, stub)
            scorers.wait_for(Codes.OK, 1)
        finally:
            scorers.stop()
        p99 = int(SAMPLES * 0.99) - 1
        figures = (
            f"p99 of {SAMPLES} Samples: {alone[p99] * 1e3:.1f} ms alone, "
            f"{loaded[p99] * 1e3:.1f} ms during {SCORES} Scores of {DRAWS} draws, "
            f"{batches[SAMPLES // 2]} batches at the median and {batches[p99]} at p99, 0 failed; "
            f"Scores answered {scorers.ended[Codes.OK]}, "
            f"rejected {scorers.ended[Codes.RESOURCE_EXHAUSTED]}"
        )
        record_property("figures", figures)
        print(figures)
        assert set(scorers.ended) <= {Codes.OK, Codes.RESOURCE_EXHAUSTED}
        # A Sample waits for two batches, never for a Score. On a busy machine it notices late.
        assert batches[SAMPLES // 2] <= 20
        assert server.metric("latentd_shed_total", graph="decoder", reason="queue_full") > 0


def test_batches_of_a_stream_carry_the_size_of_the_whole_call(
    start_server, toy_bundles, monkeypatch
):
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
