"""Rows of any size, floats of 16 bits, and what a model cannot do, through both clients."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd import images
from latentd.client import AsyncClient, Client, DataPoint, LatentPoint, SampledPoint
from latentd.client import calls as built
from latentd.errors import InvalidArgument
from latentd.latents import NoiseRange, standard_normal
from latentd.pb import vae_pb2 as pb
from tests.support.echo_bundle import SIZE, publish_echo
from tests.support.spatial_bundle import LOG_VAR, blocks, decoded, encoded, publish_spatial

SIZES = [(32, 32), (96, 160), (256, 128)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Any:
    root = tmp_path_factory.mktemp("bundles")
    publish_spatial(root)
    publish_spatial(root, "scored", likelihood=True)
    publish_spatial(root, "plain", posterior="gaussian", prior=None)
    publish_echo(root)
    return module_servers(root, default_model="spatial", max_batch_latency_ms=5)


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def z_shape(height: int, width: int) -> tuple[int, int, int]:
    return 4, height // 8, width // 8


def test_model_info_has_the_shapes_of_every_size(client: Client) -> None:
    info = client.get_model()
    assert (info.default.x.shape, info.default.z) == ((32, 32, 3), (4, 4, 4))
    shapes = info.at({"h": 96, "w": 160})
    assert (shapes.x.shape, shapes.z) == ((96, 160, 3), (4, 12, 20))
    assert (info.z.scale, info.z.shift) == ((1.0,), (0.0,))
    assert {name: axis.max for name, axis in info.axes.items()} == {"h": 256, "w": 256}
    assert set(info.unavailable) == {"map", "params", "score", "tiles"}


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_call_takes_rows_of_every_size(client: Client, height: int, width: int) -> None:
    x = blocks(3, height, width)
    encoding = client.encode(x, draw=True, seed=7)
    assert encoding.log_var is not None
    assert encoding.z is not None
    np.testing.assert_allclose(encoding.mean, encoded(x), atol=1e-5)
    assert (encoding.log_var == LOG_VAR).all()
    assert encoding.z.shape == (3, *z_shape(height, width))
    np.testing.assert_array_equal(client.decode(encoding.mean).x, x)
    np.testing.assert_array_equal(client.reconstruct(x).x, x)
    files = images.encode_files(x)
    np.testing.assert_array_equal(client.reconstruct(files, format="png").x, x)
    sizes = {"h": height, "w": width}
    samples = client.sample(3, seed=7, offset=2, sizes=sizes, include_z=True)
    assert samples.z is not None
    noise = standard_normal([NoiseRange(7, 2, 3)], z_shape(height, width))
    np.testing.assert_array_equal(samples.z, noise)
    assert np.abs(samples.x.astype(int) - decoded(noise)).max() <= 1
    chunks = list(client.stream_samples(3, seed=7, offset=2, sizes=sizes, chunk_rows=2))
    np.testing.assert_array_equal(np.concatenate([chunk.x for chunk in chunks]), samples.x)
    ends = DataPoint(x[0]), LatentPoint(encoding.mean[1])
    np.testing.assert_array_equal(client.interpolate(*ends, steps=2).x, x[:2])
    ends = SampledPoint(7, 2), SampledPoint(7, 3)
    path = client.interpolate(*ends, steps=2, sizes=sizes)
    np.testing.assert_array_equal(path.x, samples.x[:2])
    path = client.interpolate(DataPoint(files[0]), SampledPoint(7, 2), steps=3)
    np.testing.assert_array_equal(path.x[[0, 2]], [x[0], samples.x[0]])
    scores = client.score(x, draws=4, seed=1, model="scored")
    assert np.isfinite(scores.log_likelihood).all()
    rebuilt = client.reconstruct(x, include_scores=True, model="scored")
    assert rebuilt.elbo is not None
    assert np.isfinite(rebuilt.elbo).all()


def test_axis_that_is_not_named_has_its_default(client: Client) -> None:
    assert client.sample(1, sizes={"w": 64}).x.shape == (1, 32, 64, 3)


def test_rows_of_one_seed_depend_on_the_size(client: Client) -> None:
    one, other = (client.sample(1, seed=3, sizes={"h": h}) for h in (32, 64))
    assert one.x.shape != other.x.shape


def test_chunks_of_a_stream_may_differ_in_size(client: Client) -> None:
    chunks = [blocks(2, height, width) for height, width in SIZES]
    answers = list(client.stream_reconstruct(chunks, include_latents=True))
    for chunk, answer in zip(chunks, answers, strict=True):
        np.testing.assert_array_equal(answer.x, chunk)
        assert answer.mean is not None
        np.testing.assert_allclose(answer.mean, encoded(chunk), atol=1e-5)


def test_files_of_a_stream_that_do_not_fit_are_listed(client: Client) -> None:
    good, other = images.encode_files(blocks(1, 96, 160))[0], images.encode_files(blocks(1, 64, 64))
    wrong = images.encode_files(np.zeros((1, 20, 32, 3), np.uint8))[0]
    chunk: Any = [b"no image", wrong, good, other[0], good]
    (answer,) = client.stream_reconstruct([chunk])
    assert answer.x.shape == (2, 96, 160, 3)
    assert list(answer.errors) == [0, 1, 3]
    assert "not a readable PNG, JPEG or WebP" in answer.errors[0]
    assert "h is 20; expected a multiple of 8 from 16 to 256" in answer.errors[1]
    assert "expected 160 x 96 pixels (width x height), got 64 x 64" in answer.errors[3]
    (answer,) = client.stream_reconstruct([chunk[:2]])
    assert list(answer.errors) == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda client: client.sample(1, sizes={"h": 100}),
            r'sizes["h"]: h is 100; expected a multiple of 8 from 16 to 256. '
            "The nearest valid length is 104.",
        ),
        (
            lambda client: next(client.stream_samples(1, sizes={"w": 4096})),
            r'sizes["w"]: w is 4096; expected a multiple of 8 from 16 to 256. '
            "The nearest valid length is 256.",
        ),
        (
            lambda client: client.sample(1, sizes={"d": 8}),
            "sizes[\"d\"]: the model has no free axis 'd'; it has h, w.",
        ),
        (
            lambda client: client.sample(1, sizes={"h": 32}, model="echo"),
            "sizes[\"h\"]: the model has no free axis 'h'; all of its lengths are fixed.",
        ),
        (
            lambda client: client.encode(np.zeros((1, 8, 32, 3), np.uint8)),
            "x.tensor.shape: h is 8; expected a multiple of 8 from 16 to 256. "
            "The nearest valid length is 16.",
        ),
        (
            lambda client: client.encode(np.zeros((1, 32, 32, 1), np.uint8)),
            "x.tensor.shape: expected shape [h, w, 3], got [32, 32, 1].",
        ),
        (
            lambda client: client.encode(np.zeros((32, 32, 3), np.uint8)),
            "x.tensor.shape: expected [rows, h, w, 3], got [32, 32, 3]. The first axis counts the "
            "rows: send one row as row[None].",
        ),
        (
            lambda client: client.decode(np.zeros((1, 4, 1, 4))),
            "z.shape: a latent of shape [4, 1, 4] means that h is 8; expected a multiple of 8 from "
            "16 to 256. The nearest valid length is 16.",
        ),
        (
            lambda client: client.decode(np.zeros((1, 64))),
            "z.shape: expected [rows, 4, h/8, w/8], got [1, 64].",
        ),
        (
            lambda client: client.encode(
                images.encode_files(blocks(2, 48, 32)) + images.encode_files(blocks(1, 32, 32))
            ),
            "x.images.files[2]: expected 32 x 48 pixels (width x height), got 32 x 32. Use "
            "FIT_RESIZE or FIT_CROP to resize it.",
        ),
        (
            lambda client: client.interpolate(
                DataPoint(blocks(1, 48, 32)[0]), LatentPoint(np.zeros((4, 4, 4)))
            ),
            "end: has size [32, 32, 3], but start has [48, 32, 3]. Send two ends of one size.",
        ),
        (
            lambda client: client.interpolate(
                DataPoint(blocks(1, 48, 32)[0]), SampledPoint(1), sizes={"h": 32}
            ),
            "start: has size [48, 32, 3], but sizes has [32, 32, 3]. Send two ends of one size.",
        ),
    ],
)
def test_size_that_does_not_fit_is_named(client: Client, call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        call(client)
    assert str(refused.value) == message


def test_more_rows_than_a_message_holds_are_refused(client: Client) -> None:
    info = client.get_model()
    assert info.limits.max_rows == 4096
    limit = info.at({"h": 256, "w": 256}).rows_in(info.limits.max_message_bytes)
    assert limit < 100
    with pytest.raises(InvalidArgument, match=rf"^count: .* the limit is 1 to {limit} "):
        client.sample(limit + 1, sizes={"h": 256, "w": 256})
    assert len(client.sample(8, sizes={"h": 256, "w": 256})) == 8


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ('sizes["h"]', lambda client: client.sample(1, sizes={"h": -8})),
        ("sizes", lambda client: client.sample(1, sizes=(96, 160))),
        ("sizes", lambda client: client.sample(1, sizes={1: 2})),
        ("float_dtype", lambda client: client.sample(1, float_dtype="uint8")),
        ("float_dtype", lambda client: client.decode(np.zeros((1, 4)), float_dtype="half")),
    ],
)
def test_invalid_argument_is_raised_before_sending(client: Client, field: str, call: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(client)
    assert caught.value.field == field
    assert caught.value.__cause__ is None


def test_notebook_shows_rows_of_any_size(client: Client) -> None:
    wide = client.sample(4, sizes={"h": 16, "w": 128})
    assert wide.grid(columns=1).size == (128 * 8, (4 * 16 + 3 * 9) * 8)
    many = client.sample(80, seed=1, sizes={"h": 256, "w": 256})
    png = many._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as shown:
        assert shown.width * shown.height < 5_500_000
    assert repr(wide).startswith("Samples(4 rows of uint8 16x128x3, seed=")


def test_async_client_takes_sizes_and_dtypes_too(server: Any, client: Client) -> None:
    async def calls() -> None:
        async with AsyncClient(server.target) as other:
            sizes = {"h": 48, "w": 64}
            samples = await other.sample(
                2, seed=1, sizes=sizes, include_z=True, float_dtype="float16"
            )
            assert samples.z is not None
            assert (samples.x.shape, samples.z.dtype) == ((2, 48, 64, 3), np.float16)
            chunks = [c async for c in other.stream_samples(2, seed=1, sizes=sizes)]
            np.testing.assert_array_equal(chunks[0].x, samples.x)
            info = await other.get_model(model="plain")
            with pytest.raises(InvalidArgument, match="has no prior") as refused:
                await other.with_version(info.served_by).sample(1)
            assert refused.value.__cause__ is None

    asyncio.run(calls())


@pytest.mark.parametrize("dtype", ["<f2", ">f2"])
def test_float16_arrays_are_sent_as_they_are(client: Client, dtype: str) -> None:
    x = np.random.default_rng(0).random((3, SIZE)).astype(dtype)
    assert built.encode(x).request.x.tensor.dtype == pb.DATA_TYPE_FLOAT16
    assert built.decode(x).request.z.dtype == pb.DATA_TYPE_FLOAT16
    np.testing.assert_array_equal(client.encode(x, model="echo").mean, x.astype(np.float32))
    np.testing.assert_array_equal(client.decode(x, model="echo").x, x.astype(np.float32))
    (answer,) = client.stream_reconstruct([x], model="echo")
    np.testing.assert_array_equal(answer.x, x.astype(np.float32))
    for wide in (np.float32, np.float64):
        assert built.encode(x.astype(wide)).request.x.tensor.dtype == pb.DATA_TYPE_FLOAT32
    with pytest.raises(InvalidArgument, match="expected uint8, got float16"):
        client.encode(np.zeros((1, 32, 32, 3), dtype))


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("bfloat16", np.float32)])
def test_floats_come_back_in_the_dtype_asked_for(
    client: Client, name: str, dtype: type[np.floating[Any]]
) -> None:
    x = np.random.default_rng(0).random((3, SIZE), np.float32)
    named = {"model": "echo", "float_dtype": name}
    encoding = client.encode(x, draw=True, seed=1, **named)
    assert encoding.log_var is not None
    assert encoding.z is not None
    path = client.interpolate(SampledPoint(1), SampledPoint(2), include_z=True, **named)  # type: ignore[arg-type]
    (streamed,) = client.stream_reconstruct([x], include_latents=True, **named)  # type: ignore[arg-type]
    (chunk,) = client.stream_samples(2, include_z=True, **named)  # type: ignore[arg-type]
    for array in (
        *(encoding.mean, encoding.log_var, encoding.z, client.decode(x, **named).x),
        client.decode(x, params=True, **named).params,
        *(client.reconstruct(x, **named).x, path.x, path.z, streamed.x, streamed.mean),
        *(chunk.x, chunk.z),
    ):
        assert array is not None
        assert array.dtype == dtype
    assert np.abs(encoding.mean.astype(np.float32) - x).max() < 2**-8
    assert (encoding.mean.astype(np.float32) != x).any()


def test_what_a_known_version_cannot_do_is_refused_before_it_is_sent(
    server: Any, client: Client
) -> None:
    info = client.get_model(model="plain")
    pinned = client.with_version(info.served_by)
    x = blocks(1, 32, 32)
    refused = {
        "model": [
            lambda: pinned.sample(1),
            lambda: next(pinned.stream_samples(1)),
            lambda: pinned.score(x),
            lambda: client.sample(1, model="plain", version=1),
        ],
        "include_scores": [
            lambda: pinned.reconstruct(x, include_scores=True),
            lambda: next(pinned.stream_reconstruct([x], include_scores=True)),
        ],
        "output": [lambda: pinned.decode(np.zeros((1, 4, 4, 4)), params=True)],
        "end.sample": [lambda: pinned.interpolate(DataPoint(x[0]), SampledPoint(1))],
    }
    methods = ("Sample", "StreamSamples", "Score", "Reconstruct", "StreamReconstruct", "Decode")
    before = [server.calls(method) for method in (*methods, "Interpolate")]
    for field, attempts in refused.items():
        for attempt in attempts:
            with pytest.raises(InvalidArgument, match=r"plain has no prior|plain defines no") as e:
                attempt()
            assert (e.value.field, e.value.__cause__) == (field, None)
    assert [server.calls(method) for method in (*methods, "Interpolate")] == before
    assert pinned.reconstruct(x).x.shape == x.shape


def test_what_the_newest_version_cannot_do_is_refused_by_the_server(
    start_server: Any, tmp_path: Path
) -> None:
    publish_spatial(tmp_path, prior=None)
    server = start_server(tmp_path)
    with Client(server.target) as client:
        reason = client.get_model().unavailable["sample"]
        with pytest.raises(InvalidArgument, match=reason):
            client.sample(1)
        publish_spatial(tmp_path)  # has a prior
        server.scan()
        assert len(client.sample(1)) == 1
        with pytest.raises(InvalidArgument, match=reason):
            client.sample(1, model="spatial", version=1)
