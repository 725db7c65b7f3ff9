"""Large rows in tiles: the same answers, told as such, in batches with other rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.calls.context import CallContext
from latentd.models.inference import ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.server import RunningServer
from tests.support.spatial_bundle import publish_spatial
from tests.support.tiled_bundle import APPROXIMATE, EXACT, SIZE, images, publish_tiled
from tests.support.toy_bundle import PublishToy
from tests.support.wait import LONG, result_of

SIZES = [(72, 64), (136, 200), (64, 520)]
ALWAYS, NEEDED = pb.TILING_ALWAYS, pb.TILING_WHEN_NEEDED


@pytest.fixture(scope="module")
def server(listener, tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("bundles")
    publish_tiled(root)
    publish_tiled(root, "blended", tile=APPROXIMATE)
    publish_spatial(root)
    publish_spatial(root, "scored", likelihood=True, tiles={"encoder": EXACT, "decoder": EXACT})
    PublishToy()(root)
    limits = {"max_batch_rows": 512, "max_batch_latency_ms": 5, "max_message_mib": 2}
    return module_servers(root, listener=listener, default_model="tiled", **limits)


@pytest.fixture(scope="module")
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def served(server: RunningServer, name: str) -> ServedModel:
    models = server.server.repository.models()
    return next(model for model in models if model.manifest.model == name)


def rows(x: np.ndarray) -> pb.Rows:
    return codec.to_rows(x)


def floats(tensor: pb.Tensor) -> np.ndarray:
    return codec.from_tensor(tensor)


def close(actual: pb.Rows, expected: pb.Rows) -> None:
    """x' of the same pixels; a sum in another order may round to the next level."""
    difference = codec.from_rows(actual).astype(int) - codec.from_rows(expected)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_exact_tiles_give_the_same_as_whole_rows(stub, height, width):
    x = rows(images(2, height, width))
    whole = stub.Encode(pb.EncodeRequest(x=x, draw=True, seed=5))
    tiled = stub.Encode(pb.EncodeRequest(x=x, draw=True, seed=5, tiling=ALWAYS))
    assert (whole.tiled, tiled.tiled) == (pb.TILED_UNSPECIFIED, pb.TILED_EXACT)
    for name in ("mean", "log_var", "z"):
        np.testing.assert_allclose(
            floats(getattr(tiled, name)), floats(getattr(whole, name)), atol=1e-5
        )
    z = whole.mean
    whole, tiled = (stub.Decode(pb.DecodeRequest(z=z, tiling=t)) for t in (0, ALWAYS))
    assert (whole.tiled, tiled.tiled) == (pb.TILED_UNSPECIFIED, pb.TILED_EXACT)
    close(tiled.x, whole.x)
    for draw in (False, True):
        request = pb.ReconstructRequest(x=x, draw=draw, seed=3)
        whole = stub.Reconstruct(request)
        request.tiling = ALWAYS
        tiled = stub.Reconstruct(request)
        assert tiled.tiled == pb.TILED_EXACT
        close(tiled.x, whole.x)


def test_sampled_latents_are_those_of_whole_rows(stub):
    request = pb.SampleRequest(
        count=3, seed=9, offset=7, temperature=0.5, include_z=True, sizes={"h": 136, "w": 200}
    )
    whole = stub.Sample(request)
    request.tiling = ALWAYS
    tiled = stub.Sample(request)
    assert tiled.tiled == pb.TILED_EXACT
    assert tiled.z == whole.z
    close(tiled.x, whole.x)
    stream = pb.StreamSamplesRequest(
        count=3, seed=9, offset=7, temperature=0.5, sizes=request.sizes, tiling=ALWAYS, chunk_rows=2
    )
    parts = list(stub.StreamSamples(stream))
    assert [part.tiled for part in parts] == [pb.TILED_EXACT] * 2
    streamed = np.concatenate([codec.from_rows(part.x) for part in parts])
    np.testing.assert_array_equal(streamed, codec.from_rows(tiled.x))


def test_path_between_large_rows_is_decoded_in_tiles(stub):
    ends = [pb.LatentAnchor(x=rows(images(1, 136, 200, seed))) for seed in (1, 2)]
    request = pb.InterpolateRequest(start=ends[0], end=ends[1], steps=3)
    whole = stub.Interpolate(request)
    request.tiling = ALWAYS
    tiled = stub.Interpolate(request)
    assert tiled.tiled == pb.TILED_EXACT
    close(tiled.x, whole.x)


def test_only_rows_larger_than_a_tile_are_run_in_tiles(stub):
    x = rows(images(1, SIZE, SIZE))
    assert stub.Encode(pb.EncodeRequest(x=x, tiling=ALWAYS)).tiled == pb.TILED_UNSPECIFIED
    large = rows(images(1, 136, 200))
    assert stub.Encode(pb.EncodeRequest(x=large, tiling=NEEDED)).tiled == pb.TILED_UNSPECIFIED


def test_params_and_scores_of_rows_in_tiles(server, stub):
    request = pb.ReconstructRequest(
        x=rows(images(2, 136, 200)), include_scores=True, draw=True, seed=1, model="scored"
    )
    whole = stub.Reconstruct(request)
    request.tiling = ALWAYS
    tiled = stub.Reconstruct(request)
    assert tiled.tiled == pb.TILED_EXACT
    for name in ("reconstruction_error", "kl", "elbo"):
        np.testing.assert_allclose(getattr(tiled, name), getattr(whole, name), rtol=1e-6)
    z = stub.Encode(pb.EncodeRequest(x=request.x, model="scored")).mean
    params = [
        floats(
            stub.Decode(
                pb.DecodeRequest(z=z, model="scored", output=pb.DECODE_OUTPUT_PARAMS, tiling=tiling)
            ).params
        )
        for tiling in (0, ALWAYS)
    ]
    np.testing.assert_allclose(*params, atol=1e-5)

    model = served(server, "scored")
    model.max_elements = 100 * 100 * 3
    try:
        with pytest.raises(grpc.RpcError, match="include_scores: scores are computed of whole ro"):
            stub.Reconstruct(request)
    finally:
        model.max_elements = 0


def test_tiles_that_are_not_exact_are_blended_and_told(stub):
    x = rows(images(1, 136, 200))
    whole = stub.Reconstruct(pb.ReconstructRequest(x=x, model="blended"))
    tiled = stub.Reconstruct(pb.ReconstructRequest(x=x, model="blended", tiling=ALWAYS))
    assert (whole.tiled, tiled.tiled) == (pb.TILED_UNSPECIFIED, pb.TILED_APPROXIMATE)
    difference = codec.from_rows(tiled.x).astype(int) - codec.from_rows(whole.x)
    assert 0 < np.abs(difference).mean() < 5


def test_model_tells_its_tiles(stub):
    encoder, decoder = stub.GetModel(pb.GetModelRequest()).tiles
    assert (encoder.graph, decoder.graph) == ("encoder", "decoder")
    assert dict(encoder.size) == {"h": 64, "w": 64}
    assert dict(encoder.overlap) == {"h": 32, "w": 32}
    assert (encoder.exact, encoder.max_abs_difference) == (True, 1e-6)
    blended, _ = stub.GetModel(pb.GetModelRequest(model="blended")).tiles
    assert (blended.exact, blended.decibels) == (False, 30)


@pytest.mark.parametrize(
    ("model", "tiling", "said"),
    [
        ("spatial", ALWAYS, "tiling: spatial was made without a measurement of tiles. Leave"),
        ("spatial", NEEDED, "tiling: spatial was made without a measurement of tiles. Leave"),
        ("toy", NEEDED, "tiling: toy has rows of one size only. Leave tiling out."),
        ("tiled", 9, "tiling: unknown enum value 9"),
    ],
)
def test_tiles_that_were_not_measured_are_refused(stub, model, tiling, said):
    for method, request in (
        (stub.Encode, pb.EncodeRequest(x=rows(images(1, 136, 200)))),
        (stub.Sample, pb.SampleRequest(count=1)),
        (stub.Reconstruct, pb.ReconstructRequest(x=rows(images(1, 136, 200)))),
    ):
        request.model, request.tiling = model, tiling
        with pytest.raises(grpc.RpcError) as error:
            method(request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details().startswith(said)


def test_row_beyond_the_memory_of_a_run_is_run_in_tiles_when_needed(server, stub):
    model = served(server, "tiled")
    x = rows(images(1, 136, 200))
    whole = stub.Reconstruct(pb.ReconstructRequest(x=x))
    model.max_elements = 100 * 100 * 3
    try:
        with pytest.raises(grpc.RpcError, match=r"needs more memory .* tiling can run it in tiles"):
            stub.Reconstruct(pb.ReconstructRequest(x=x))
        tiled = stub.Reconstruct(pb.ReconstructRequest(x=x, tiling=NEEDED))
        assert tiled.tiled == pb.TILED_EXACT
        close(tiled.x, whole.x)
        small = pb.ReconstructRequest(x=rows(images(1, 72, 72)), tiling=NEEDED)
        assert stub.Reconstruct(small).tiled == pb.TILED_UNSPECIFIED
        model.max_elements = 32 * 32 * 3  # less than a tile
        with pytest.raises(grpc.RpcError, match="needs more memory"):
            stub.Reconstruct(pb.ReconstructRequest(x=x, tiling=NEEDED))
    finally:
        model.max_elements = 0


@pytest.mark.parametrize("tiling", [pb.TILING_UNSPECIFIED, ALWAYS])
def test_row_larger_than_a_message_is_refused_before_it_is_computed(stub, tiling):
    sizes = {"h": 1024, "w": 1024}
    z = codec.to_tensor(np.zeros((1, 4, 128, 128), np.float32))
    point = pb.LatentAnchor(sample=pb.SampledPoint())
    ends = {"start": point, "end": point, "steps": 2}
    for field, call in (
        ("sizes", lambda: stub.Sample(pb.SampleRequest(count=1, sizes=sizes, tiling=tiling))),
        (
            "sizes",
            lambda: list(
                stub.StreamSamples(pb.StreamSamplesRequest(count=1, sizes=sizes, tiling=tiling))
            ),
        ),
        ("z.shape", lambda: stub.Decode(pb.DecodeRequest(z=z, tiling=tiling))),
        (
            "sizes",
            lambda: stub.Interpolate(pb.InterpolateRequest(**ends, sizes=sizes, tiling=tiling)),
        ),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details() == (
            f"{field}: a row of 3,145,728 bytes is larger than a message; the limit is 2,097,152 "
            "bytes. Use a smaller size, or raise --max-message-mib."
        )


def test_tiles_share_batches_with_the_rows_of_other_calls(server, stub, monkeypatch):
    """A batch is held until two calls in tiles and one row of a tile's size wait."""
    model = served(server, "tiled")
    batcher, batches = model.encoder, []
    run, submit = batcher._runner._run, batcher.submit
    started, may_run, submitted = threading.Event(), threading.Event(), threading.Semaphore(0)

    def held(batch):
        batches.append([item.rows for item in batch])
        started.set()
        assert may_run.wait(LONG)
        return run(batch)

    def counted(*args, **kwargs):
        future = submit(*args, **kwargs)
        submitted.release()
        return future

    monkeypatch.setattr(batcher._runner, "_run", held)
    first = model.encode(images(1, 16, 16), CallContext())
    assert started.wait(LONG)
    monkeypatch.setattr(batcher, "submit", counted)
    x = [images(1, 72, 64, seed=1), images(1, 72, 64, seed=2), images(1, 64, 64)]
    calls = [stub.Encode.future(pb.EncodeRequest(x=rows(one), tiling=ALWAYS)) for one in x]
    assert all(submitted.acquire(timeout=LONG) for _ in calls)
    may_run.set()
    result_of(first)
    answers = [call.result() for call in calls]
    assert [answer.tiled for answer in answers] == [pb.TILED_EXACT] * 2 + [pb.TILED_UNSPECIFIED]
    assert sorted(batches[1]) == [1, 2, 2]
    for one, answer in zip(x, answers, strict=True):
        alone = stub.Encode(pb.EncodeRequest(x=rows(one), tiling=ALWAYS))
        assert alone.mean == answer.mean
