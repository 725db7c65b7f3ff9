"""Every RPC over a real port: the right response to each client, the same in any batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.latents import NoiseRange, standard_normal
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def rows(x: np.ndarray) -> pb.Rows:
    return pb.Rows(tensor=codec.to_tensor(x))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), np.uint8)


def latents_of(response) -> bytes:
    return response.z.data


def test_get_model_describes_the_model(stub, provider):
    model = stub.GetModel(pb.GetModelRequest())
    assert (model.posterior, model.kind, [d.length for d in model.x_shape]) == (
        "gaussian",
        "image",
        [4, 4],
    )
    assert (model.x_dtype, model.x_min, model.x_max) == (pb.DATA_TYPE_UINT8, 0, 255)
    assert (model.z_shape[0].length, model.likelihood, model.parameters) == (
        16,
        "bernoulli",
        ["logit"],
    )
    assert model.served_by.digest.startswith("sha256:")
    assert model.provider == provider
    assert [graph.graph for graph in model.profiles] == ["encoder", "decoder"]
    for graph in model.profiles:
        assert graph.max_batch_rows in [cost.rows for cost in graph.timings]


def test_list_models_marks_the_default_and_the_newest(stub):
    (listed,) = stub.ListModels(pb.ListModelsRequest()).models
    assert listed.version.model == "toy"
    assert listed.state == pb.MODEL_STATE_READY
    assert listed.newest
    assert listed.default


def test_encode_returns_mean_log_var_and_a_seeded_sample(stub):
    x = images(3)
    response = stub.Encode(pb.EncodeRequest(x=rows(x), draw=True, seed=5))
    mean = codec.from_tensor(response.mean)
    np.testing.assert_allclose(mean, x.reshape(3, 16) / 255, atol=1e-6)
    np.testing.assert_array_equal(codec.from_tensor(response.log_var), np.full((3, 16), -2, "f4"))
    eps = standard_normal([NoiseRange(5, 0, 3, stream=1)], (16,))
    np.testing.assert_allclose(codec.from_tensor(response.z), mean + np.exp(-1) * eps, rtol=1e-6)
    assert response.seed == 5


def test_encode_in_pieces_draws_the_same_z_as_in_one_call(stub):
    x = images(6)
    whole = stub.Encode(pb.EncodeRequest(x=rows(x), draw=True, seed=5))
    second = stub.Encode(pb.EncodeRequest(x=rows(x[4:]), draw=True, seed=5, offset=4))
    np.testing.assert_allclose(
        codec.from_tensor(whole.z)[4:], codec.from_tensor(second.z), rtol=1e-6
    )


def test_encode_returns_no_z_and_no_seed_without_draw(stub):
    response = stub.Encode(pb.EncodeRequest(x=rows(images(1))))
    assert not response.HasField("z")
    assert response.seed == 0


def test_decode_returns_x_or_params(stub):
    z = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 16)
    x = codec.from_rows(stub.Decode(pb.DecodeRequest(z=codec.to_tensor(z))).x)
    np.testing.assert_array_equal(x, np.round(z * 255).astype(np.uint8).reshape(2, 4, 4))
    response = stub.Decode(pb.DecodeRequest(z=codec.to_tensor(z), output=pb.DECODE_OUTPUT_PARAMS))
    np.testing.assert_array_equal(codec.from_tensor(response.params), z.reshape(2, 1, 4, 4))
    assert not response.HasField("x")


def test_reconstruct_returns_each_row_with_its_scores(stub):
    x = images(5)
    response = stub.Reconstruct(pb.ReconstructRequest(x=rows(x), include_scores=True))
    np.testing.assert_array_equal(codec.from_rows(response.x), x)
    unit = x.reshape(5, 16).astype(np.float64) / 255
    kl = 0.5 * (unit**2 + np.exp(-2) - 1 + 2).sum(axis=1)
    error = -(unit * unit - np.log1p(np.exp(unit))).sum(axis=1)  # the logits are the pixels
    np.testing.assert_allclose(response.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(response.reconstruction_error, error, rtol=1e-5)
    np.testing.assert_allclose(response.elbo, -error - kl, rtol=1e-5)


def test_reconstruct_with_draw_is_repeatable_by_its_seed(stub):
    first = stub.Reconstruct(pb.ReconstructRequest(x=rows(images(2)), draw=True))
    again = stub.Reconstruct(pb.ReconstructRequest(x=rows(images(2)), draw=True, seed=first.seed))
    assert first.x == again.x
    assert first.x != rows(images(2))


def test_gray_png_is_accepted_and_returned(stub):
    x = images(3)
    png = codec.to_rows(x, pb.FORMAT_PNG)
    response = stub.Reconstruct(pb.ReconstructRequest(x=png, format=pb.FORMAT_PNG))
    assert list(response.x.images.files) == list(png.images.files)


@pytest.mark.parametrize("path", [pb.INTERPOLATION_PATH_LERP, pb.INTERPOLATION_PATH_SLERP])
def test_interpolation_starts_and_ends_exactly_at_its_anchors(stub, path):
    x = images(1)
    z = np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    response = stub.Interpolate(
        pb.InterpolateRequest(
            start=pb.LatentAnchor(x=rows(x)),
            end=pb.LatentAnchor(z=codec.to_tensor(z)),
            steps=7,
            path=path,
            include_z=True,
        )
    )
    way = codec.from_rows(response.x)
    assert way.shape == (7, 4, 4)
    reconstruction = stub.Reconstruct(pb.ReconstructRequest(x=rows(x))).x
    np.testing.assert_array_equal(way[:1], codec.from_rows(reconstruction))
    decoded = stub.Decode(pb.DecodeRequest(z=codec.to_tensor(z))).x
    np.testing.assert_array_equal(way[-1:], codec.from_rows(decoded))
    assert codec.from_tensor(response.z)[-1:].tobytes() == z.tobytes()


def test_sampled_anchor_is_that_row_of_sample(stub):
    sample = stub.Sample(pb.SampleRequest(count=4, seed=9, include_z=True))
    response = stub.Interpolate(
        pb.InterpolateRequest(
            start=pb.LatentAnchor(sample=pb.SampledPoint(seed=9, index=3)),
            end=pb.LatentAnchor(sample=pb.SampledPoint(seed=9)),
            steps=2,
            include_z=True,
        )
    )
    z = codec.from_tensor(sample.z)
    assert codec.from_tensor(response.z).tobytes() == z[[3, 0]].tobytes()


def test_score_bounds_the_log_likelihood_from_below(stub):
    x = images(4)
    few = stub.Score(pb.ScoreRequest(x=rows(x), draws=1, seed=3))
    many = stub.Score(pb.ScoreRequest(x=rows(x), draws=500, seed=3))
    # log p(x) of the toy has no closed form, but K = 500 must tighten K = 1, and its
    # ELBO must agree with the bound's own definition on average.
    assert np.mean(many.log_likelihood) > np.mean(few.log_likelihood)
    assert (np.array(many.log_likelihood) > np.array(many.elbo)).all()
    assert many.draws == 500


def test_score_of_a_row_does_not_depend_on_other_rows(stub):
    x = images(4)
    together = stub.Score(pb.ScoreRequest(x=rows(x), draws=8, seed=3))
    alone = stub.Score(pb.ScoreRequest(x=rows(x[2:3]), draws=8, seed=3, offset=2))
    assert alone.log_likelihood[0] == pytest.approx(together.log_likelihood[2], rel=1e-5)


def test_same_seed_gives_the_same_latents_in_any_chunks(stub):
    def draw(count: int, offset: int) -> bytes:
        request = pb.SampleRequest(count=count, seed=7, offset=offset, include_z=True)
        return latents_of(stub.Sample(request))

    whole = draw(64, 0)
    assert b"".join(draw(1, i) for i in range(64)) == whole
    assert draw(32, 0) + draw(32, 32) == whole
    streamed = stub.StreamSamples(
        pb.StreamSamplesRequest(count=64, seed=7, chunk_rows=10, include_z=True)
    )
    assert b"".join(map(latents_of, streamed)) == whole


def test_same_seed_gives_the_same_latents_during_other_traffic(server, stub):
    alone = stub.Sample(pb.SampleRequest(count=16, seed=7, include_z=True)).z.data

    async def amid() -> set[bytes]:
        async with grpc.aio.insecure_channel(server.target) as channel:
            busy = VaeServiceStub(channel)
            others = [
                asyncio.ensure_future(busy.Sample(pb.SampleRequest(count=1 + i % 50, seed=i)))
                for i in range(200)
            ]
            mine = [
                busy.Sample(pb.SampleRequest(count=16, seed=7, include_z=True)) for _ in range(20)
            ]
            answers = {(await call).z.data for call in mine}
            await asyncio.gather(*others)
            return answers

    assert asyncio.run(amid()) == {alone}


def test_same_seed_gives_the_same_latents_after_a_restart(stub, start_server, toy_bundles):
    request = pb.SampleRequest(count=16, seed=7, include_z=True)
    with grpc.insecure_channel(start_server(toy_bundles).target) as channel:
        assert latents_of(VaeServiceStub(channel).Sample(request)) == latents_of(
            stub.Sample(request)
        )


def test_sample_returns_the_seed_when_none_is_given(stub):
    first = stub.Sample(pb.SampleRequest(count=2))
    second = stub.Sample(pb.SampleRequest(count=2))
    assert first.seed != second.seed
    assert stub.Sample(pb.SampleRequest(count=2, seed=first.seed)).x == first.x


def test_temperature_scales_the_latents(stub):
    def z(temperature: float) -> np.ndarray:
        request = pb.SampleRequest(count=4, seed=1, temperature=temperature, include_z=True)
        return codec.from_tensor(stub.Sample(request).z)

    np.testing.assert_array_equal(z(0.5), z(1.0) * np.float32(0.5))
    assert not z(0.0).any()


def test_64_clients_each_get_their_own_response_from_shared_batches(server):
    graph = "encoder"
    before = server.metric("latentd_batch_rows_bucket", graph=graph, le="1.0")
    runs = server.metric("latentd_batch_rows_count", graph=graph)

    async def ask_all() -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            busy = VaeServiceStub(channel)

            async def ask(caller: int) -> None:
                for turn in range(20):
                    x = images(1, seed=1000 * caller + turn)
                    response = await busy.Reconstruct(pb.ReconstructRequest(x=rows(x)))
                    np.testing.assert_array_equal(codec.from_rows(response.x), x)

            await asyncio.gather(*map(ask, range(64)))

    asyncio.run(ask_all())
    alone = server.metric("latentd_batch_rows_bucket", graph=graph, le="1.0") - before
    batches = server.metric("latentd_batch_rows_count", graph=graph) - runs
    assert alone < batches, "no batch held more than one row"
    assert batches < 64 * 20, "each request ran alone"


def test_request_larger_than_a_batch_is_split_and_joined_in_order(start_server, toy_bundles):
    server = start_server(toy_bundles, max_batch_rows=7)
    x = images(100)
    with grpc.insecure_channel(server.target) as channel:
        response = VaeServiceStub(channel).Reconstruct(pb.ReconstructRequest(x=rows(x)))
    np.testing.assert_array_equal(codec.from_rows(response.x), x)
    assert server.metric("latentd_batch_rows_count", graph="encoder") == 15


@pytest.fixture(scope="module")
def autoencoder(module_servers, publish_toy, tmp_path_factory) -> Iterator[VaeServiceStub]:
    """A server of the toy as an autoencoder: it has no prior, and encodes rows to points."""
    root = tmp_path_factory.mktemp("plain")
    publish_toy(root, model="plain", posterior="point")
    with grpc.insecure_channel(module_servers(root).target) as channel:
        yield VaeServiceStub(channel)


def test_autoencoder_encodes_to_points(autoencoder):
    x = images(2)
    encoded = autoencoder.Encode(pb.EncodeRequest(x=rows(x)))
    z = codec.from_tensor(encoded.mean)
    np.testing.assert_array_equal(z, x.reshape(2, 16).astype(np.float32) / 255)
    assert not encoded.HasField("log_var")
    back = autoencoder.Decode(pb.DecodeRequest(z=encoded.mean))
    np.testing.assert_array_equal(codec.from_rows(back.x), x)
    stream = [pb.StreamReconstructRequest(x=rows(x), include_latents=True)]
    (part,) = autoencoder.StreamReconstruct(iter(stream))
    assert codec.from_tensor(part.mean).tolist() == z.tolist()
    assert not part.HasField("log_var")
    ends = [pb.LatentAnchor(x=rows(x[i : i + 1])) for i in (0, 1)]
    path = autoencoder.Interpolate(pb.InterpolateRequest(start=ends[0], end=ends[1], steps=3))
    np.testing.assert_array_equal(codec.from_rows(path.x)[[0, 2]], x)
    model = autoencoder.GetModel(pb.GetModelRequest())
    assert (model.posterior, model.prior) == ("point", "")
    assert sorted(model.unavailable) == ["draw", "map", "sample", "score"]


_NO_PRIOR = "plain has no prior, so there is no distribution to sample latents from. Use Decode"
_POINT = "plain encodes each row to a point, "
_SAMPLE = pb.LatentAnchor(sample=pb.SampledPoint(seed=1))


@pytest.mark.parametrize(
    ("call", "request_", "said"),
    [
        ("Sample", pb.SampleRequest(count=1), f"model: {_NO_PRIOR}"),
        ("StreamSamples", pb.StreamSamplesRequest(count=1), f"model: {_NO_PRIOR}"),
        (
            "Interpolate",
            pb.InterpolateRequest(start=_SAMPLE, end=_SAMPLE, steps=2),
            f"start.sample: {_NO_PRIOR}",
        ),
        ("Score", pb.ScoreRequest(x=rows(images(1))), f"model: {_POINT}so it defines no bound"),
        (
            "Reconstruct",
            pb.ReconstructRequest(x=rows(images(1)), include_scores=True),
            f"include_scores: {_POINT}so it defines no bound",
        ),
        (
            "Reconstruct",
            pb.ReconstructRequest(x=rows(images(1)), draw=True),
            f"draw: {_POINT}not to a distribution",
        ),
        (
            "Encode",
            pb.EncodeRequest(x=rows(images(1)), draw=True),
            f"draw: {_POINT}not to a distribution",
        ),
        (
            "StreamReconstruct",
            iter([pb.StreamReconstructRequest(x=rows(images(1)), include_scores=True)]),
            f"include_scores: {_POINT}so it defines no bound",
        ),
    ],
)
def test_autoencoder_refuses_what_needs_distributions(autoencoder, call, request_, said):
    send = getattr(autoencoder, call)
    with pytest.raises(grpc.RpcError) as failed:
        list(send(request_)) if call.startswith("Stream") else send(request_)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details().startswith(said)
    assert failed.value.details().endswith(".")
