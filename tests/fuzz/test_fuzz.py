"""Arbitrary and mutated bytes for every method, through the real handlers, service and engine.

A few hundred inputs each by default; `make fuzz FUZZ_SECONDS=300` goes on for that long with new
ones, and says how many there were. A server that dies fails its test.
"""

from __future__ import annotations

import functools
import io
import os
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable

import grpc
import http2
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from serving import codec, images
from serving.batching import tasks
from serving.batching.tasks import Caller, Reply
from serving.bundle import XSpec
from serving.errors import InvalidInput
from serving.pb import vae_pb2 as pb
from serving.pb.vae_pb2_grpc import VaeServiceStub
from serving.transport import wire

SECONDS = float(os.environ.get("LATENTD_FUZZ_SECONDS", "0"))  # of each test
EXAMPLES = 300  # in one go
MUTANTS = 20  # of each input, where the tests go on for their seconds
PATIENCE = 30  # seconds for an answer
MOST_CHUNKS = 3  # of a stream, before its caller leaves
TOY = XSpec("image", (4, 4), "uint8", (0.0, 255.0))
TRIED = {"inputs": 0}  # so far, by all the tests

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,  # by ourselves, when a stream has gone on for long enough
}

METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["VaeService"].methods}


class Call:
    """One call as a handler sees it; its caller sends `data` and leaves a long stream early."""

    def __init__(self, data: bytes) -> None:
        self.caller = Caller()
        self._data: bytes | None = data
        self.written: list[bytes] = []

    def read(self) -> Reply[bytes | None]:
        reply: Reply[bytes | None] = Reply()
        reply.resolve(self._data)
        self._data = None  # it was the last
        return reply

    def write(self, message: bytes) -> Reply[None]:
        self.written.append(message)
        if len(self.written) == MOST_CHUNKS:
            self.caller.cancel()
        reply: Reply[None] = Reply()
        reply.resolve(None)
        return reply


def ask(handler: wire.Handler, data: bytes) -> tuple[wire.Status, Call]:
    """Make a call and wait for its end."""
    call, ended, statuses = Call(data), threading.Event(), []

    async def run() -> None:
        statuses.append(await wire.finish(handler, call))
        ended.set()

    tasks.start(run())
    assert ended.wait(PATIENCE), data
    return statuses[0], call


def again_and_again(
    test: Callable[[], None],
    request: pytest.FixtureRequest,
    mutants: Callable[[random.Random], None] = lambda chance: None,
) -> None:
    """Run a property once; or, with new inputs each time and `mutants` of them, until its seconds
    are over."""
    until, rounds = time.monotonic() + SECONDS, 0
    inner = test.hypothesis.inner_test  # type: ignore[attr-defined]
    before = TRIED["inputs"]

    @functools.wraps(inner)
    def counted(*args: object, **kwargs: object) -> None:
        TRIED["inputs"] += 1
        inner(*args, **kwargs)

    test.hypothesis.inner_test = counted  # type: ignore[attr-defined]
    while rounds == 0 or time.monotonic() < until:
        seed(rounds)(test)()
        rounds += 1
        if SECONDS:
            mutants(random.Random(rounds))
    if SECONDS:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f" {TRIED['inputs'] - before:,} inputs, {TRIED['inputs']:,} in all")


once = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Numbers at the edges, where sizes overflow and ranges end.
edges = st.sampled_from([0, 1, 2, 3, 15, 16, 17, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1])
wide = st.one_of(edges, st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


def png(width: int, height: int, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with bytes changed, cut out, put in or repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 32))]
            case _:
                del data[at:]
    return bytes(data)


def mutant(whole: bytes, chance: random.Random) -> bytes:
    """The same for less: hypothesis takes longer over an input than the server."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                data[at:at] = data[at : at + chance.randint(1, 32)]
    return bytes(data)


files = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([png(4, 4, "L"), png(4, 4, "RGB"), png(5, 4, "L"), png(4, 4, "P")]),
    mutated(png(4, 4, "L")),
)
tensors = st.builds(
    pb.Tensor,
    dtype=st.sampled_from([0, 1, 2, 3, 77]),
    shape=st.one_of(
        st.sampled_from([[1, 4, 4], [2, 4, 4], [1, 16], [3, 16]]),
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 17), max_size=4),
    ),
    data=st.one_of(
        st.sampled_from([bytes(16), bytes(32), bytes(64), b"\xff" * 64]), st.binary(max_size=80)
    ),
)
rows = st.one_of(
    st.builds(pb.Rows),
    st.builds(pb.Rows, tensor=tensors),
    st.builds(pb.Rows, png=st.builds(pb.PngImages, files=st.lists(files, max_size=3))),
)
points = st.one_of(
    st.builds(pb.EndPoint),
    st.builds(pb.EndPoint, x=rows),
    st.builds(pb.EndPoint, z=tensors),
    st.builds(pb.EndPoint, sample=st.builds(pb.SampledPoint, seed=wide, index=wide)),
)
fields = {
    "x": rows,
    "z": tensors,
    "start": points,
    "end": points,
    "count": edges,
    "steps": edges,
    "draws": edges,
    "chunk_rows": edges,
    "seed": wide,
    "offset": wide,
    "temperature": st.floats(width=32),
    "model": st.sampled_from(["", "toy", "nobody", "../toy", "x" * 5000, "\0"]),
    "version": st.integers(0, 3),
    "format": st.integers(0, 4),
    "output": st.integers(0, 4),
    "path": st.integers(0, 4),
    "draw": st.booleans(),
    "scores": st.booleans(),
    "return_z": st.booleans(),
    "latents": st.booleans(),
    "omit_x": st.booleans(),
}


def requests(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """Messages whose fields are each right or wrong; those of a field that is new here fail."""
    known = {field.name: fields[field.name] for field in kind.DESCRIPTOR.fields}
    built = st.fixed_dictionaries({}, optional=known).map(lambda given: kind(**given))
    return built.map(lambda message: message.SerializeToString())


@pytest.fixture(scope="module")
def running(toy_bundles, module_servers):
    return module_servers(toy_bundles, queue_rows=20_000)


def check(name: str, handler: wire.Handler, data: bytes) -> None:
    """The call ends well, or with a refusal that is the caller's fault and says little."""
    status, call = ask(handler, data)
    if status.code is grpc.StatusCode.OK:
        answer = getattr(pb, METHODS[name].output_type.name)
        for message in call.written if status.message is None else [status.message]:
            answer.FromString(message)
    else:
        assert status.code in REFUSALS, status
        assert len(status.text) <= 1000
        assert "Traceback" not in status.text


@pytest.mark.parametrize("name", METHODS)
def test_any_bytes_and_any_fields_are_answered_or_refused(running, request, name):
    handler = running.server._listener.handlers[f"/{wire.SERVICE}/{name}"]
    kind = getattr(pb, METHODS[name].input_type.name)

    inputs: list[bytes] = []

    @once
    @given(st.one_of(st.binary(max_size=200), requests(kind), requests(kind).flatmap(mutated)))
    def property_(data: bytes) -> None:
        inputs.append(data)
        check(name, handler, data)

    def mutants(chance: random.Random) -> None:
        for data in inputs:
            for _ in range(MUTANTS):
                TRIED["inputs"] += 1
                check(name, handler, mutant(data, chance))
        inputs.clear()

    again_and_again(property_, request, mutants)
    status, _ = ask(running.server._listener.handlers[f"/{wire.SERVICE}/Sample"], b"\x18\x01")
    assert status.code is grpc.StatusCode.OK
    for lane in ("encoder", "decoder"):
        assert running.metric("latentd_failed_batches_total", lane=lane) == 0
        labels = {"lane": lane, "model": "toy", "version": "1"}
        assert running.metric("latentd_queue_rows", **labels) == 0


def test_a_tensor_is_read_or_refused_and_what_is_read_goes_back(request):
    @once
    @given(tensors)
    def property_(tensor: pb.Tensor) -> None:
        try:
            array = codec.from_tensor(tensor)
        except InvalidInput as error:
            field = error.field
        else:
            field = "tensor." if codec.to_tensor(array) == tensor else "another tensor"
        assert field.startswith("tensor.")

    again_and_again(property_, request)


def test_an_image_is_read_or_refused(request):
    # A checksum that is right lets changes through to the decoder.
    def sealed(file: bytes) -> bytes:
        at, out = 8, file[:8]
        while len(file) - at >= 12:
            length = min(int.from_bytes(file[at : at + 4], "big"), len(file) - at - 12)
            chunk = file[at + 4 : at + 8 + length]
            out += file[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
            at += 12 + length
        return out

    @once
    @given(st.one_of(files, mutated(png(4, 4, "L")).map(sealed)))
    def property_(file: bytes) -> None:
        try:
            array = images.read_pngs([file], TOY, "x")
        except InvalidInput as error:
            field = error.field
        else:
            field = "x[0]"
            assert (array.shape, array.dtype) == ((1, 4, 4), np.uint8)
        assert field == "x[0]"

    again_and_again(property_, request)


CALL = (
    http2.PREFACE
    + http2.settings({4: 1 << 20})
    + http2.call(1, f"/{wire.SERVICE}/Sample", (b"grpc-timeout", b"5S"), (b"x-bin", b"AAAA"))
    + http2.body(1, http2.message(pb.SampleRequest(count=1).SerializeToString()))
    + http2.frame(http2.PING, 0, 0, bytes(8))
    + http2.window(0, 100)
)


def test_any_frames_leave_the_server_serving(running, request):
    port = int(running.target.rpartition(":")[2])
    frames = st.tuples(st.integers(0, 12), st.integers(0, 255), wide, st.binary(max_size=64)).map(
        lambda parts: http2.frame(parts[0], parts[1], parts[2] % 2**32, parts[3])
    )
    opening = st.sampled_from([CALL, CALL[: len(http2.PREFACE)], b""])

    @once
    @given(
        st.one_of(
            mutated(CALL),
            st.tuples(opening, st.lists(frames)).map(lambda parts: parts[0] + b"".join(parts[1])),
        )
    )
    def property_(data: bytes) -> None:
        with http2.Connection(port, preface=False) as connection:
            connection.socket.sendall(data)
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:  # it has hung up already
                return
            while connection.socket.recv(1 << 16):  # until it hangs up
                pass

    again_and_again(property_, request)
    with grpc.insecure_channel(running.target) as channel:
        answer = VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=PATIENCE)
        assert len(answer.x.tensor.data) == 16
