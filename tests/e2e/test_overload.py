"""Ten times what the server can do, over the wire: refused in order, and over when it is over."""

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

REQUESTS = {  # so few a second are too much that one connection brings ten times as many
    "core": pb.SampleRequest(count=2048, seed=7),
    # grpc.aio's loop takes some 1,500 calls a second here: of more, half and more expire before
    # anybody could refuse them. So they are fewer, and slower.
    "aio": pb.DecodeRequest(z=codec.to_tensor(SLOW)),
}
ROUNDS = 20_000  # which take some hundredths of a second
PATIENCE = b"200m"  # grpc-timeout, milliseconds
OK, EXPIRED, EXHAUSTED = 0, 4, 8
REFUSED = "REFUSED_STREAM"  # HTTP/2's own, beyond 1024 calls over one connection: never begun
TIMES = 10
HEALTH_SECONDS = 1.0  # in which health has to answer


class Flood:
    """Calls over one connection at a steady rate, whatever becomes of them."""

    def __init__(self, port: int, request: pb.SampleRequest | pb.DecodeRequest) -> None:
        self.connection = Connection(port)
        self._next = 1
        method = type(request).__name__.removesuffix("Request")
        self._path = f"/vae.v1.VaeService/{method}"
        self._message = message(request.SerializeToString())

    def send(self, calls: int) -> list[int]:
        """Begin some calls; their streams."""
        streams = [self._next + 2 * i for i in range(calls)]
        self._next += 2 * calls
        path, timeout = self._path, (b"grpc-timeout", PATIENCE)
        self.connection.send(*(call(s, path, timeout) + body(s, self._message) for s in streams))
        return streams

    def capacity(self) -> float:
        """Calls a second that are answered when two are always under way."""
        began, calls = time.perf_counter(), 100
        for _ in range(calls // 2):
            self.connection.wait_for(*self.send(2))
        return calls / (time.perf_counter() - began)

    def pour(self, rate: float, seconds: float) -> Counter[int | str | None]:
        """Send `rate` calls a second and wait for the ends of all; how many ended how."""
        reader_sees_end = threading.Event()
        sent: list[int] = []

        def read() -> None:
            while not reader_sees_end.is_set() or not self._ended(sent):
                if not self.connection.read():
                    return

        reader = threading.Thread(target=read)
        reader.start()
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            sent += self.send(int(passed * rate) - len(sent))
            time.sleep(0.005)
        reader_sees_end.set()
        sent += self.send(1)  # whose end lets the reader look again
        reader.join()
        ends = [self.connection.answers[stream] for stream in sent]
        return Counter(REFUSED if end.reset == 7 else end.status for end in ends)

    def _ended(self, streams: list[int]) -> bool:
        answers = self.connection.answers
        return all(stream in answers and answers[stream].ended for stream in streams)


class Others:
    """Meanwhile: the prober, and a client with patience and the usual policy of retries."""

    def __init__(self, target: str) -> None:
        self._target = target
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
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
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
def test_ten_times_the_capacity_is_refused_in_order_and_leaves_nothing(
    serve, publish_slow, tmp_path, listener, seconds, record_property
):
    publish_slow(tmp_path, ROUNDS)
    batch_rows = {"core": 64, "aio": 1}[listener]
    flags = ("--workers=1", f"--listener={listener}", f"--max-batch-rows={batch_rows}")
    process = serve("--bundles", str(tmp_path), *flags)
    target, _ = process.ready()
    flood = Flood(int(target.rpartition(":")[2]), REQUESTS[listener])
    capacity = flood.capacity()
    with Others(target) as others:
        ends = flood.pour(TIMES * capacity, seconds)
    record_property(
        "figures",
        f"{TIMES} times {capacity:.0f} calls/s for {seconds} s: {sum(ends.values())} calls, "
        f"{ends[OK]} answered, {ends[EXHAUSTED]} refused, {ends[EXPIRED]} expired, "
        f"{ends[REFUSED]} refused by HTTP/2; {others.probes} probes, {others.samples} patient "
        f"calls, {len(others.failures)} of both lost",
    )
    assert others.failures == []
    assert others.probes > 0
    assert others.samples > 0
    assert set(ends) <= {OK, EXHAUSTED, EXPIRED, REFUSED}
    assert ends[OK] > 0
    assert ends[EXHAUSTED] > sum(ends.values()) / 2
    for answer in flood.connection.answers.values():
        if answer.status == EXHAUSTED:
            info = error_details_pb2.RetryInfo()
            assert answer.rich.details[0].Unpack(info)
            assert info.retry_delay.ToMilliseconds() > 0
            assert int(answer.headers[b"grpc-retry-pushback-ms"]) > 0
    while process.value("latentd_queue_rows"):  # of calls that have expired
        pass
    for _ in range(20):  # each in its 200 ms again
        assert flood.connection.wait_for(*flood.send(1))[0].status == OK
    flood.connection.socket.close()
