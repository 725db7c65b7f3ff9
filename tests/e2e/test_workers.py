"""Several workers on one port share the calls, combine their metrics, and are restarted."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import settings
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.process.supervisor import Supervisor
from tests.support.server import free_port

SECONDS = 120
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def pair(serve, toy_bundles):
    """A server of two workers."""
    return serve("--bundles", str(toy_bundles), "--workers", "2", "--lame-duck-seconds", "0")


def connect(target: str) -> grpc.Channel:
    """A channel with a connection of its own, which the kernel gives to one of the workers."""
    return grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])


def worker_pids(process) -> list[int]:
    """The workers that were ready, including dead ones."""
    found = (re.search(r"Worker \d+ is ready \(process (\d+)\)", line) for line in process.log)
    return [int(match[1]) for match in found if match]


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shares(target: str, pids: list[int], number: int) -> list[int]:
    """How many of so many new connections each process gets."""
    host, _, port = target.rpartition(":")
    with ExitStack() as opened:
        ends = []
        for _ in range(number):
            client = opened.enter_context(socket.create_connection((host, int(port))))
            assert client.recv(9)  # HTTP/2 settings: it was accepted
            ends.append((f"{int(port):04X}", f"{client.getsockname()[1]:04X}"))
        inodes: set[str] = set()
        while len(inodes) < number:  # a table that changes while it is read may miss some
            inodes |= server_sockets(ends)
        return [len(inodes & open_sockets(pid)) for pid in pids]


def server_sockets(ends: list[tuple[str, str]]) -> set[str]:
    """The server's sockets of connections between these local and remote ports."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, *rest = line.split()
            if (local.rpartition(":")[2], remote.rpartition(":")[2]) in ends:
                found.add(f"socket:[{rest[6]}]")
    return found


def open_sockets(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(link))
    return found


def test_connections_are_given_in_turns_also_after_a_restart(pair):
    target, _ = pair.ready()
    reasons = [line for line in pair.log if "A hash gives connections" in line]
    if reasons:
        pytest.skip(reasons[0])
    killed, left = worker_pids(pair)
    for _ in range(8):  # a hash would do so too now and then
        assert shares(target, [killed, left], 4) == [2, 2]
    os.kill(killed, signal.SIGKILL)
    while len(pids := worker_pids(pair)) < 3:
        pair.answer()
    for _ in range(8):
        assert shares(target, [pids[-1], left], 4) == [2, 2]


def test_calls_are_distributed_and_counted_together(pair):
    target, _ = pair.ready()
    pids = worker_pids(pair)
    idle = [open_files(pid) for pid in pids]
    answers = set()
    with ExitStack() as channels:
        for _ in range(32):
            stub = VaeServiceStub(channels.enter_context(connect(target)))
            answers.add(stub.Sample(pb.SampleRequest(count=1, seed=7)).x.tensor.data)
        shares = [open_files(pid) - before for pid, before in zip(pids, idle, strict=True)]
    assert all(share > 0 for share in shares), f"connections to each worker: {shares}"
    assert len(answers) == 1, "every worker draws the same"
    assert pair.value("latentd_requests_total", method="Sample", code="OK") == 32
    assert pair.value("latentd_workers") == 2
    assert pair.value("latentd_queue_rows", graph="decoder") == 0


def test_every_worker_loads_a_new_version(serve, publish_toy, tmp_path):
    publish_toy(tmp_path)
    flags = ("--poll-seconds", "0.05", "--keep-versions", "1", "--lame-duck-seconds", "0")
    process = serve("--bundles", str(tmp_path), "--workers", "2", *flags)
    target, _ = process.ready()
    publish_toy(tmp_path)
    versions = set()
    while process.value("latentd_reloads_total", result="unloaded") < 2:
        with connect(target) as channel:
            answer = VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
        versions.add(answer.served_by.version)
    assert versions <= {1, 2}
    assert process.value("latentd_model_info", version="1") == 0
    assert process.value("latentd_model_info", version="2") == 1


def test_dead_worker_is_restarted_while_the_other_serves(pair):
    target, _ = pair.ready()
    killed, left = worker_pids(pair)
    os.kill(killed, signal.SIGKILL)
    pair.wait_for("Worker . died: SIGKILL")
    replaced = False
    while not replaced:  # the replacement joins when it is ready, and not before
        with connect(target) as channel:
            assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x.tensor.data
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        replaced = len(worker_pids(pair)) == 3
    assert pair.value("latentd_worker_restarts_total") == 1
    assert pair.value("latentd_workers") == 2
    assert Path(f"/proc/{left}").exists()


def test_counters_survive_a_dead_worker(pair):
    target, _ = pair.ready()
    killed, _ = worker_pids(pair)
    with ExitStack() as channels:
        stubs = [VaeServiceStub(channels.enter_context(connect(target))) for _ in range(16)]
        for stub in stubs:
            stub.Sample(pb.SampleRequest(count=1))
        assert pair.value("latentd_requests_total", method="Sample") == 16
    os.kill(killed, signal.SIGKILL)
    pair.wait_for("Worker . died: SIGKILL")
    assert pair.value("latentd_requests_total", method="Sample") == 16
    with urllib.request.urlopen(pair.ready()[1]) as page:
        assert (
            'latentd_request_seconds_bucket{le="+Inf",method="Sample"} 16.0' in page.read().decode()
        )
    while pair.value("latentd_workers") < 2:
        pair.answer()
    assert pair.value("latentd_requests_total", method="Sample") >= 16


def test_hung_worker_does_not_block_metrics(pair):
    pair.ready()
    before = pair.value("latentd_queue_rows_limit", graph="decoder")
    hung, _ = worker_pids(pair)
    os.kill(hung, signal.SIGSTOP)
    try:
        for _ in range(2):
            assert pair.value("latentd_queue_rows_limit", graph="decoder") == before
    finally:
        os.kill(hung, signal.SIGCONT)


def test_server_leaves_no_temporary_files(serve, toy_bundles, tmp_path):
    places = {name: tmp_path / name for name in ("home", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "nowhere")  # another program's
    process = serve("--bundles", str(toy_bundles), "--workers", "2", **environment)
    process.answer()
    for place in places.values():  # as a cleaner of temporary files does
        assert not list(place.iterdir())
        place.rmdir()
    os.kill(worker_pids(process)[0], signal.SIGKILL)
    process.wait_for("Worker . died: SIGKILL")
    while process.value("latentd_workers") < 2:
        process.answer()
    assert process.value("latentd_requests_total", method="Sample") >= 1
    kept: list[object] = []
    for pid in (process.pid, *worker_pids(process)[1:]):
        opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        kept += [path for path in opened if str(tmp_path) in path]
    process.signal(signal.SIGKILL)
    process.exit_status()
    kept += tmp_path.iterdir()
    assert not kept


def test_workers_exit_without_supervisor(pair):
    pair.ready()
    handles = [os.pidfd_open(pid) for pid in worker_pids(pair)]
    pair.signal(signal.SIGKILL)
    for handle in handles:
        ended, _, _ = select.select([handle], [], [], SECONDS)
        os.close(handle)
        assert ended


def test_too_many_crashes_end_the_server(pair):
    pair.ready()
    for pid in worker_pids(pair):
        os.kill(pid, signal.SIGKILL)
    for number in range(1, 6):
        started = pair.wait_for(rf"as process (\d+) \(restart {number}\)")
        os.kill(int(started[1]), signal.SIGKILL)
    assert pair.exit_status() == 70
    assert "Too many worker crashes" in "".join(pair.log)


def test_second_server_cannot_share_the_port(pair, serve, toy_bundles):
    target, _ = pair.ready()
    port = target.rpartition(":")[2]
    for workers in ("1", "2"):
        second = serve("--bundles", str(toy_bundles), "--port", port, "--workers", workers)
        assert second.exit_status() == 78
        assert "address in use" in "".join(second.log)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_starts_again_where_connections_linger(serve, toy_bundles, workers):
    ports = [str(free_port()), str(free_port())]
    flags = ("--bundles", str(toy_bundles), "--port", ports[0], "--http-port", ports[1])
    first = serve(*flags, "--workers", workers, "--lame-duck-seconds", "0")
    first.ready()
    with ExitStack() as opened:
        for port in ports:
            client = opened.enter_context(socket.create_connection(("127.0.0.1", int(port))))
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1)
        first.signal(signal.SIGTERM)  # it closes the connections first, so that they linger
        assert first.exit_status() == 0
        target, _ = serve(*flags, "--workers", "2").ready()
        assert target == f"127.0.0.1:{ports[0]}"


def test_stop_while_starting_workers(toy_bundles, monkeypatch):
    flags = {"bundles": str(toy_bundles), "port": "0", "metrics_port": "0", "workers": "50"}
    supervisor, started = Supervisor(settings.load_settings(flags, environment={})), []

    def start(number: int) -> None:
        started.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(supervisor, "_start", start)
    assert supervisor.run() == 0
    assert started == [1]
