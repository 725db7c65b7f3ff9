"""The client against a real server of the toy model, whose encoder and decoder are inverses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from latentd import images
from latentd.bundle import DataSpec
from latentd.client import (
    AsyncClient,
    Client,
    DataPoint,
    LatentPoint,
    SampledPoint,
    ServiceError,
)
from latentd.client.channel import Connection, parse_target
from latentd.errors import ConfigError, InvalidArgument, ModelNotFound, Unavailable
from latentd.latents import NoiseRange, standard_normal


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


class OnAnotherDevice:
    """Like a tensor on a GPU: it has the method, which raises."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), np.uint8)


def decoded(z: np.ndarray) -> np.ndarray:
    """The toy model's decoder."""
    return np.round(255 * np.clip(z, 0, 1)).astype(np.uint8).reshape(-1, 4, 4)


def test_get_model_describes_the_model(client: Client) -> None:
    info = client.get_model()
    assert info.default.x == DataSpec("image", (4, 4), "uint8", (0, 255), bounded=True)
    assert (info.posterior, info.likelihood, info.default.z) == ("gaussian", "bernoulli", (16,))
    assert info.limits.max_rows == 4096
    assert info.versions == [info.served_by.version] == [1]
    assert all(graph.seconds[1] > 0 for graph in info.profiles)
    assert str(info.served_by) == f"toy version 1 ({info.served_by.digest[:15]})"


def test_list_models_names_the_default(client: Client) -> None:
    (listed,) = client.list_models()
    assert (listed.state, listed.newest, listed.default) == ("ready", True, True)
    assert listed.version == client.get_model().served_by


def test_encode_returns_z_only_on_request(client: Client) -> None:
    x = pixels(5)
    encoding = client.encode(x)
    np.testing.assert_array_equal(encoding.mean, x.reshape(5, 16).astype(np.float32) / 255)
    assert (encoding.log_var == -2).all()
    assert encoding.z is None
    whole = client.encode(x, draw=True, seed=2**64 - 1)
    parts = [client.encode(x[i : i + 1], draw=True, seed=2**64 - 1, offset=i).z for i in range(5)]
    assert whole.seed == 2**64 - 1
    np.testing.assert_array_equal(whole.z, np.concatenate(parts))  # type: ignore[arg-type]


def test_decode_returns_data_or_params(client: Client) -> None:
    z = np.random.default_rng(1).normal(size=(3, 16))  # float64 travels as float32
    np.testing.assert_array_equal(client.decode(z).x, decoded(z.astype(np.float32)))
    decoding = client.decode(z, params=True)
    assert decoding.params is not None
    np.testing.assert_array_equal(decoding.params, z.astype(np.float32).reshape(3, 1, 4, 4))
    with pytest.raises(AttributeError, match="without params=True"):
        _ = decoding.x
    assert (len(decoding), "params: float32 (3, 1, 4, 4)" in repr(decoding)) == (3, True)


def test_sample_is_reproduced_by_its_seed(client: Client) -> None:
    samples = client.sample(8, include_z=True)
    assert samples.z is not None
    np.testing.assert_array_equal(
        samples.z, standard_normal([NoiseRange(samples.seed, 0, 8)], (16,))
    )
    np.testing.assert_array_equal(samples.x, decoded(samples.z))
    again = client.sample(3, seed=samples.seed, offset=5)
    np.testing.assert_array_equal(again.x, samples.x[5:])
    assert again.offset == 5
    assert client.sample(8).seed != samples.seed
    mode = client.sample(1, temperature=0, include_z=True)
    assert mode.z is not None
    assert not mode.z.any()


def test_stream_samples_equals_sample(client: Client) -> None:
    chunks = list(client.stream_samples(50, seed=7, offset=3, chunk_rows=16, include_z=True))
    assert [(chunk.offset, len(chunk)) for chunk in chunks] == [
        (3, 16),
        (19, 16),
        (35, 16),
        (51, 2),
    ]
    whole = client.sample(50, seed=7, offset=3, include_z=True)
    np.testing.assert_array_equal(np.concatenate([chunk.x for chunk in chunks]), whole.x)
    np.testing.assert_array_equal(np.concatenate([chunk.z for chunk in chunks]), whole.z)


def test_reconstruct_returns_scores_only_on_request(client: Client) -> None:
    x = pixels(6)
    plain = client.reconstruct(x)
    np.testing.assert_array_equal(plain.x, x)
    assert plain.kl is None
    scored = client.reconstruct(x, include_scores=True)
    assert scored.elbo is not None
    assert scored.kl is not None
    assert scored.reconstruction_error is not None
    assert (scored.elbo.shape, scored.elbo.dtype) == ((6,), np.float32)
    np.testing.assert_allclose(scored.elbo, -scored.reconstruction_error - scored.kl, rtol=1e-5)


def test_interpolate_ends_at_its_anchors(client: Client) -> None:
    x, z = pixels(1)[0], np.linspace(0, 1, 16)
    way = client.interpolate(DataPoint(x), LatentPoint(z), steps=5, path="lerp")
    assert way.x.shape == (5, 4, 4)
    np.testing.assert_array_equal(way.x[0], x)
    np.testing.assert_array_equal(way.x[4:], decoded(z.astype(np.float32)))
    way = client.interpolate(SampledPoint(7, 3), SampledPoint(8), steps=2, include_z=True)
    assert way.z is not None
    np.testing.assert_array_equal(way.z[:1], standard_normal([NoiseRange(7, 3, 1)], (16,)))
    (png,) = images.encode_files(x[None])
    way = client.interpolate(DataPoint(png), DataPoint(x), steps=2)
    np.testing.assert_array_equal(way.x[0], x)


def test_score_is_reproduced_by_its_seed(client: Client) -> None:
    x = pixels(4)
    scores = client.score(x, draws=8)
    assert (scores.log_likelihood.shape, scores.draws) == ((4,), 8)
    part = client.score(x[2:], draws=8, seed=scores.seed, offset=2)
    np.testing.assert_allclose(part.elbo, scores.elbo[2:], rtol=1e-5)


def test_png_is_sent_as_bytes_or_paths(client: Client, tmp_path: Path) -> None:
    x = pixels(3)
    files = images.encode_files(x)
    path = tmp_path / "one.png"
    path.write_bytes(files[1])
    encoding = client.encode([files[0], path, str(path)])
    np.testing.assert_array_equal(encoding.mean, client.encode(x[[0, 1, 1]]).mean)
    back = client.reconstruct(files, format="png")
    np.testing.assert_array_equal(
        images.decode_files(back.files, client.get_model().default.x, "x"), x
    )
    np.testing.assert_array_equal(back.x, x)
    assert len(client.sample(3, format="png")) == 3


def test_async_client_equals_the_blocking_one(server: Any, client: Client) -> None:
    async def calls() -> None:
        async with AsyncClient(server.target) as other:
            x = pixels(5)
            info, samples, encoding = await asyncio.gather(
                other.get_model(), other.sample(5, seed=9), other.encode(x)
            )
            assert info == client.get_model()
            np.testing.assert_array_equal(samples.x, client.sample(5, seed=9).x)
            np.testing.assert_array_equal(encoding.mean, client.encode(x).mean)
            chunks = [chunk.x async for chunk in other.stream_samples(5, seed=9, chunk_rows=2)]
            np.testing.assert_array_equal(np.concatenate(chunks), samples.x)
            assert await other.with_version(info.served_by).health() == "SERVING"
            with pytest.raises(InvalidArgument, match=r"^count: 5000 "):
                await other.sample(5000)

    asyncio.run(calls())


def test_invalid_argument_names_the_field(client: Client) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"^x\.tensor\.shape: expected \[rows, 4, 4\], got \[2, 9\]\. The first axis",
    ) as bad:
        client.score(np.zeros((2, 9), np.uint8))
    assert bad.value.field == "x.tensor.shape"
    with pytest.raises(InvalidArgument, match=r"^count: 5000 "):
        client.sample(5000)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("count", lambda client: client.sample(-1)),
        ("count", lambda client: client.stream_samples(0)),
        ("seed", lambda client: client.sample(1, seed=2**64)),
        ("offset", lambda client: client.encode(pixels(1), offset=-3)),
        ("path", lambda client: client.interpolate(SampledPoint(1), SampledPoint(2), path="arc")),
        ("start", lambda client: client.interpolate(pixels(1), SampledPoint(2))),
        ("start.sample.index", lambda client: client.interpolate(SampledPoint(1, -1), None)),
        ("x", lambda client: client.encode("one.png")),
        ("x[0]", lambda client: client.encode([[1, 2], [3, 4]])),
        ("x", lambda client: client.encode(None)),
        ("x", lambda client: client.encode(OnAnotherDevice())),
        ("z", lambda client: client.decode(np.array(["a"]))),
        ("version", lambda client: client.sample(1, version=-1)),
        ("x.tensor.dtype", lambda client: client.encode(pixels(1).astype(np.int64))),
    ],
)
def test_invalid_argument_is_raised_before_sending(client: Client, field: str, call: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(client)
    assert caught.value.field == field
    assert caught.value.__cause__ is None  # no call was made


def test_unknown_model_or_version_is_not_found(server: Any) -> None:
    for named in ({"model": "other"}, {"version": 9}):
        with Client(server.target, **named) as client, pytest.raises(ModelNotFound):  # type: ignore[arg-type]
            client.sample(1)


def test_message_over_the_clients_limit_is_rejected(server: Any) -> None:
    with (
        Client(server.target, max_message_bytes=1 << 10) as client,
        pytest.raises(ServiceError, match="fewer rows") as caught,
    ):
        client.encode(pixels(100))
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_message_over_the_servers_limit_is_sent_once(
    start_server: Any, toy_bundles: Path, listener: str
) -> None:
    server = start_server(toy_bundles, listener=listener, max_message_mib=1)

    async def send_another() -> None:
        async with AsyncClient(server.target) as client:
            with pytest.raises(ServiceError, match="retrying will not help"):
                await client.encode(pixels(100_000))

    with Client(server.target) as client:
        with pytest.raises(ServiceError, match="retrying will not help"):
            client.encode(pixels(100_000))
        asyncio.run(send_another())
        client.sample(1)
    assert server.calls("Encode") == 2


def test_threads_share_one_client(client: Client) -> None:
    def draw(seed: int) -> np.ndarray:
        return client.sample(3, seed=seed).x

    with ThreadPoolExecutor(8) as pool:
        for seed, x in enumerate(pool.map(draw, range(64))):
            np.testing.assert_array_equal(
                x, decoded(standard_normal([NoiseRange(seed, 0, 3)], (16,)))
            )


def test_token_is_not_sent_in_plain_text_to_other_hosts() -> None:
    with pytest.raises(ConfigError, match=r"in plain text to models\.example:443"):
        Client("models.example:443", token="s3cret")
    Client("models.example:443", token="s3cret", credentials=grpc.ssl_channel_credentials()).close()
    for here in ("127.0.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/socket"):
        Client(here, token="s3cret").close()
    for elsewhere in ("localhost.example:1", "dns:///127.0.0.1.example:1", "127.evil.example:1"):
        with pytest.raises(ConfigError):
            Client(elsewhere, token="s3cret")


def test_both_clients_have_the_same_signatures() -> None:
    for name in ("sample", "stream_samples", "encode", "score"):
        blocking, awaited = getattr(Client, name), getattr(AsyncClient, name)
        assert blocking.__doc__
        assert blocking.__doc__ == awaited.__doc__
        assert next(iter(inspect.signature(blocking).parameters)) == "self"
        assert inspect.signature(blocking) == inspect.signature(awaited)


def test_call_overrides_the_clients_model_and_version(server: Any) -> None:
    with Client(server.target, model="other", version=9) as client:
        assert client.sample(1, model="toy").served_by.version == 1
        assert client.get_model(model="toy", version=1).served_by.model == "toy"
        assert next(client.stream_samples(1, model="toy")).served_by.model == "toy"
        (answer,) = client.stream_reconstruct([pixels(2)], model="toy")
        assert answer.served_by.model == "toy"
        with pytest.raises(ModelNotFound):
            client.sample(1, model="toy", version=9)
    with Client(server.target, model="toy") as client:
        assert client.sample(1, version=1).served_by.version == 1


def test_tensors_and_wide_floats_are_accepted(client: Client) -> None:
    torch = pytest.importorskip("torch")
    x = pixels(3)
    np.testing.assert_array_equal(client.encode(torch.tensor(x)).mean, client.encode(x).mean)
    z = torch.linspace(0, 1, 32, dtype=torch.float64).reshape(2, 16)
    np.testing.assert_array_equal(client.decode(z).x, decoded(z.numpy().astype(np.float32)))
    path = client.interpolate(DataPoint(torch.tensor(x[0])), LatentPoint(z[0]), steps=2)
    np.testing.assert_array_equal(path.x[0], x[0])
    (answer,) = client.stream_reconstruct([torch.tensor(x)])
    np.testing.assert_array_equal(answer.x, x)
    with pytest.raises(InvalidArgument, match=r"^z: cannot be converted to .*requires grad"):
        client.decode(z.requires_grad_())


def test_notebook_shows_rows_as_one_image(client: Client) -> None:
    samples = client.sample(9, seed=7)
    png = samples._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert samples.grid(columns=9).width > 8 * samples.grid(columns=1).width
    same = client.sample(9, seed=7, format="png")
    assert same._repr_png_() == png
    assert repr(samples) == (
        "Samples(9 rows of uint8 4x4, seed=7, offset=0, "
        f"toy version 1 ({samples.served_by.digest[:15]}))"
    )
    parameters = client.decode(np.zeros((2, 16)), params=True)
    assert parameters._repr_png_() is None
    with pytest.raises(TypeError, match="not 8-bit images"):
        parameters.grid()


def test_async_client_created_outside_a_loop_works_in_each(server: Any) -> None:
    client = AsyncClient(server.target)

    async def draw(close: bool) -> None:
        assert len(await client.sample(2, seed=1)) == 2
        assert [len(chunk) async for chunk in client.stream_samples(3)] == [3]
        if close:
            await client.close()
            assert (
                len(await client.with_version((await client.get_model()).served_by).sample(1)) == 1
            )
            await client.close()

    asyncio.run(draw(close=True))
    asyncio.run(draw(close=False))  # left open when its loop ends
    with ThreadPoolExecutor(2) as pool:  # two loops at once
        list(pool.map(asyncio.run, [draw(close=True), draw(close=True)]))


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_proxy_is_not_used_for_this_machine(
    server: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://user:secret@127.0.0.1:9")
    with Client(server.target) as client:
        assert len(client.sample(1)) == 1


def test_failed_proxy_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    with Client("models.example:443", attempts=1, timeout=10) as client:
        with pytest.raises(Unavailable, match="environment variable http_proxy") as failed:
            client.sample(1)
        assert "secret" not in str(failed.value)
    monkeypatch.setenv("no_proxy", "other.example,.example")
    assert Connection("models.example:443").proxy_variable() == ""
    assert Connection("models.test:443").proxy_variable() == "http_proxy"


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("grpc://localhost:50051", "localhost:50051"),
        ("[::1]:1", "[::1]:1"),
        ("dns:///models.example:443", "dns:///models.example:443"),
        ("unix:/run/latentd", "unix:/run/latentd"),
    ],
)
def test_parse_target_accepts_grpc_addresses(given: str, target: str) -> None:
    assert parse_target(given) == target


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("localhost", r"the port is missing.*localhost:50051"),
        ("::1", r"the port is missing.*\[::1\]:50051"),
        ("", r"the port is missing.*localhost:50051"),
        ("dns:///models.example", r"the port is missing"),
        ("http://localhost:50051", r"without http://"),
        ("grpcs://localhost:50051", r"without grpcs://.*credentials="),
        ("localhost:port", r"a port from 1 to 65535"),
        ("localhost:70000", r"a port from 1 to 65535"),
    ],
)
def test_parse_target_rejects_invalid_addresses(given: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        Client(given)


@pytest.mark.parametrize("seconds", [None, float("inf"), 1e12])
def test_timeout_may_be_unlimited(server: Any, client: Client, seconds: float | None) -> None:
    assert len(client.sample(1, timeout=seconds).x) == 1
    with Client(server.target, timeout=seconds) as unlimited:
        assert sum(map(len, (chunk.x for chunk in unlimited.stream_samples(3)))) == 3
