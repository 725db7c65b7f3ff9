"""Ten times the server's capacity: excess calls are rejected, and the server recovers at once."""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import codec
from latentd.client import Client
from latentd.pb import vae_pb2 as pb
from tests.support.http2 import Connection, body, call, message
from tests.support.slow_engine import SLOW

REQUESTS = {  # so slow that one connection can send ten times the server's capacity
    "core": pb.SampleRequest(count=2048, seed=7),
    # grpc.aio's loop takes about 1,500 calls a second here. Of more calls, at least half expire
    # before the server can reject them. So these are slower.
    "aio": pb.DecodeRequest(z=codec.to_tensor(SLOW)),
}
ROUNDS = 20_000  # they take some hundredths of a second
TIMEOUT = b"1S"  # grpc-timeout, seconds
OK, EXPIRED, EXHAUSTED = 0, 4, 8
REFUSED = "REFUSED_STREAM"  # by HTTP/2, beyond 1024 calls on one connection: never started
TIMES = 10
HEALTH_SECONDS = {2: 60.0, 60: 1.0}  # health must answer in time: the long test has a quiet machine


class Flood:
    """Sends calls over one connection at a constant rate, without waiting for responses."""

    def __init__(self, port: int, request: pb.SampleRequest | pb.DecodeRequest) -> None:
        self.connection = Connection(port)
        self._next = 1
        method = type(request).__name__.removesuffix("Request")
        self._path = f"/vae.v1.VaeService/{method}"
        self._message = message(request.SerializeToString())

    def send(self, calls: int) -> list[int]:
        """Start calls; returns their streams."""
        streams = [self._next + 2 * i for i in range(calls)]
        self._next += 2 * calls
        path, timeout = self._path, (b"grpc-timeout", TIMEOUT)
        self.connection.send(*(call(s, path, timeout) + body(s, self._message) for s in streams))
        return streams

    def capacity(self) -> float:
        """Calls per second that succeed when two are always in flight."""
        started, calls = time.perf_counter(), 100
        for _ in range(calls // 2):
            self.connection.wait_for(*self.send(2))
        return calls / (time.perf_counter() - started)

    def pour(self, rate: float, seconds: float) -> Counter[int | str | None]:
        """Send `rate` calls per second and wait until all have ended; returns counts by status."""
        all_sent = threading.Event()
        sent: list[int] = []

        def read() -> None:
            while not all_sent.is_set() or not self._ended(sent):
                if not self.connection.read():
                    return

        reader = threading.Thread(target=read)
        reader.start()
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            sent += self.send(int(passed * rate) - len(sent))
            time.sleep(0.005)
        all_sent.set()
        sent += self.send(1)  # its end makes the reader check again
        reader.join()
        ends = [self.connection.answers[stream] for stream in sent]
        return Counter(REFUSED if end.reset == 7 else end.status for end in ends)

    def _ended(self, streams: list[int]) -> bool:
        answers = self.connection.answers
        return all(stream in answers and answers[stream].ended for stream in streams)


class Others:
    """Meanwhile: a prober, and a client with the default timeout and retries."""

    def __init__(self, target: str, health_seconds: float) -> None:
        self._target, self._health_seconds = target, health_seconds
        self._over = threading.Event()
        self.probes = self.samples = 0
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=t) for t in (self._probe, self._sample)]

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _probe(self) -> None:
        with grpc.insecure_channel(self._target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not self._over.wait(0.1):
                try:
                    answer = stub.Check(
                        health_pb2.HealthCheckRequest(), timeout=self._health_seconds
                    )
                    assert answer.status == answer.SERVING
                except Exception as error:
                    self.failures.append(error)
                self.probes += 1

    def _sample(self) -> None:
        with Client(self._target) as client:
            while not self._over.wait(0.01):
                try:
                    assert len(client.sample(1)) == 1
                except Exception as error:
                    self.failures.append(error)
                self.samples += 1


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("listener", ["core", "aio"])
def test_excess_calls_are_rejected_and_the_server_recovers(
    serve, publish_slow, tmp_path, listener, seconds, record_property
):
    publish_slow(tmp_path, ROUNDS)
    batch_rows = {"core": 64, "aio": 1}[listener]
    flags = ("--workers=1", f"--listener={listener}", f"--max-batch-rows={batch_rows}")
    process = serve("--bundles", str(tmp_path), *flags)
    target, _ = process.ready()
    flood = Flood(int(target.rpartition(":")[2]), REQUESTS[listener])
    capacity = flood.capacity()
    with Others(target, HEALTH_SECONDS[seconds]) as others:
        ends = flood.pour(TIMES * capacity, seconds)
        probes, samples = others.probes, others.samples  # which did not wait for the flood's end
    record_property(
        "figures",
        f"{TIMES} times {capacity:.0f} calls/s for {seconds} s: {sum(ends.values())} calls, "
        f"{ends[OK]} answered, {ends[EXHAUSTED]} rejected, {ends[EXPIRED]} expired, "
        f"{ends[REFUSED]} refused by HTTP/2; {probes} probes, {samples} other calls, "
        f"{len(others.failures)} of both lost",
    )
    assert others.failures == []
    assert probes > 0
    assert samples > 0
    assert set(ends) <= {OK, EXHAUSTED, EXPIRED, REFUSED}
    assert ends[OK] > 0
    assert ends[EXHAUSTED] > sum(ends.values()) / 2
    for answer in flood.connection.answers.values():
        if answer.status == EXHAUSTED:
            info = error_details_pb2.RetryInfo()
            assert answer.rich.details[0].Unpack(info)
            assert info.retry_delay.ToMilliseconds() > 0
            assert int(answer.headers[b"grpc-retry-pushback-ms"]) > 0
    while process.value("latentd_queue_rows"):  # rows of expired calls
        pass
    for _ in range(20):  # each in time again
        assert flood.connection.wait_for(*flood.send(1))[0].status == OK
    flood.connection.socket.close()
