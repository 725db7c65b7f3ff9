"""Thousands of compressed messages: none is decompressed, none costs memory, others are served."""

from __future__ import annotations

import hashlib
import time
import zlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.client import Client
from latentd.pb import vae_pb2 as pb
from tests.support.flood import Attack, attacking
from tests.support.http2 import Connection, body, call, message
from tests.support.limits import limited

MIB = 1 << 20
ROOM = 384 * MIB  # above the server's memory before: three bombs, if they were decompressed
UNAUTHENTICATED, UNIMPLEMENTED = 16, 12
TOKEN = "another-client"
SERVICE = pb.DESCRIPTOR.services_by_name["VaeService"]
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
HEALTH = [f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch")]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GZIP = (b"grpc-encoding", b"gzip")


def bomb() -> bytes:
    """60 MiB of zeros in 61 KB of gzip."""
    packing = zlib.compressobj(wbits=31)
    return packing.compress(bytes(60 * MIB)) + packing.flush()


BOMB = message(bomb(), compressed=True)


@pytest.fixture(scope="module", params=["core", "aio"])
def listener(request):
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["open", "tokens"])
def require_scope(request):
    return request.param


@pytest.fixture(scope="module")
def target(module_serve, toy_bundles, tmp_path_factory, listener, require_scope):
    """A server with little more memory than it needs: its process, and what limits its memory."""
    flags = ["--bundles", str(toy_bundles), "--workers=1", f"--listener={listener}"]
    if require_scope:
        tokens = tmp_path_factory.mktemp("tokens") / "tokens"
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        tokens.write_text(f"client models,generate,infer sha256:{digest}\n")
        flags.append(f"--tokens={tokens}")
    process = module_serve(*flags)
    # The first such calls take memory that stays, mostly for code: it must not count.
    port = int(process.ready()[0].rpartition(":")[2])
    for path in (METHODS[0], HEALTH[0]):
        with attacking(Attack(port, path, BOMB, 8, 0.1, (GZIP,))):
            pass
    with limited(process.pid, ROOM) as limit:
        yield process, limit
        process.kill()


def call_repeatedly(address: str, token: str | None, seconds: float) -> list[float]:
    """Call Sample and health in turn; all must succeed. Returns the seconds of each round."""
    rounds = []
    with Client(address, token=token) as client, grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        until = time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            assert len(client.sample(1, seed=7)) == 1
            assert check(health_pb2.HealthCheckRequest(), timeout=120).status == 1
            rounds.append(time.monotonic() - started)
    return rounds


def flood(target, path, require_scope, connections, seconds, record_property) -> None:
    process, limit = target
    address, _ = process.ready()
    token = TOKEN if require_scope else None
    call_repeatedly(address, token, 0.2)
    process.forget_peak()
    before = process.memory("VmRSS")
    port = int(address.rpartition(":")[2])
    with attacking(Attack(port, path, BOMB, connections, seconds, (GZIP,))) as ends:
        rounds = call_repeatedly(address, token, seconds)
    while process.memory("VmRSS") > before * 1.1:
        call_repeatedly(address, token, 0.1)
    calls, peak = sum(ends.statuses.values()), process.memory("VmHWM")
    p99 = sorted(rounds)[int(len(rounds) * 0.99)]
    record_property(
        "figures",
        f"{calls} compressed calls over {connections} connections: {before >> 20} MiB, peak "
        f"{peak >> 20}, then {process.memory('VmRSS') >> 20} (limit: {limit}); {len(rounds)} other "
        f"rounds, 0 lost, p99 {p99 * 1e3:.0f} ms",
    )
    expected = UNAUTHENTICATED if require_scope and path not in HEALTH else UNIMPLEMENTED
    assert ends.statuses[expected] > 0
    assert set(ends.statuses) <= {expected, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}


@pytest.mark.parametrize("path", [HEALTH[0], METHODS[0]])
def test_compressed_messages_are_rejected_and_others_served(
    target, path, require_scope, record_property
):
    flood(target, path, require_scope, 16, 0.5, record_property)


def test_forbidden_call_is_rejected_before_its_message_arrives(target, require_scope):
    address, _ = target[0].ready()
    paths = ["/no/method", *((*METHODS, REFLECTION) if require_scope else ())]
    with Connection(int(address.rpartition(":")[2])) as connection:
        partial = message(bytes(1000), length=60 * MIB)
        for stream, path in zip(range(1, 99, 2), paths, strict=False):
            connection.send(call(stream, path), body(stream, partial, end=False))
            (end,) = connection.wait_for(stream)
            assert end.status == (UNIMPLEMENTED if path == paths[0] else UNAUTHENTICATED)


@pytest.mark.slow
@pytest.mark.parametrize("connections", [16, 200])
@pytest.mark.parametrize("path", [*METHODS, *HEALTH, REFLECTION])
def test_compressed_flood_of_every_method(
    target, path, require_scope, connections, record_property
):
    flood(target, path, require_scope, connections, 2, record_property)
