"""A model of text: what each method answers, against PyTorch's model."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from scipy import stats

from latentd import bundle, codec, latents
from latentd.client import Client, DataPoint, SampledPoint, Texts
from latentd.errors import InvalidArgument
from latentd.latents import NoiseRange
from latentd.models import scoring
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.rpc import fields
from latentd.texts import to_texts
from latentd.training.model import VAE, decoded, text_decoder
from tests.support.server import RunningServer, server_starter
from tests.support.text_bundle import LENGTH, TEXTS, X, publish_text, text_model


def rows_of(values: list[list[int]]) -> pb.Rows:
    return pb.Rows(tensor=codec.to_tensor(np.array(values, np.uint8)))


@pytest.fixture(scope="module")
def text_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    publish_text(root)
    return root


@pytest.fixture(scope="module")
def net() -> VAE:
    return text_model()


@pytest.fixture(scope="module")
def server(text_bundles: Path) -> Iterator[RunningServer]:
    with server_starter() as start:
        yield start(text_bundles)


@pytest.fixture(scope="module")
def target(server: RunningServer) -> str:
    return server.target


@pytest.fixture(scope="module")
def client(target: str) -> Iterator[Client]:
    with Client(target) as client:
        yield client


@pytest.fixture(scope="module")
def stub(target: str) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(target) as channel:
        yield VaeServiceStub(channel)


def greedy(net: VAE, z: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return decoded(net, torch.tensor(z)).numpy()


def distortion(net: VAE, z: np.ndarray, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net.distortion(torch.tensor(z), torch.tensor(x)).numpy()


def test_the_model_is_described(client: Client) -> None:
    info = client.get_model()
    assert (info.default.x.kind, info.default.x.shape) == ("text", (LENGTH,))
    assert "each byte given those before it" in info.unavailable["params"]


def test_samples_are_decoded_greedily(client: Client, net: VAE) -> None:
    samples = client.sample(40, seed=7, include_z=True)
    assert np.array_equal(samples.x, greedy(net, samples.z))
    assert np.array_equal(samples.z, latents.standard_normal([NoiseRange(7, 0, 40)], (3,)))
    assert np.array_equal(client.sample(5, seed=7, offset=20).x, samples.x[20:25])


def test_encodings_are_pytorchs(client: Client, net: VAE) -> None:
    found = client.encode(X)
    with torch.no_grad():
        mean, log_var = net.encode(torch.from_numpy(X))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_var, log_var, rtol=1e-4, atol=1e-5)


def test_reconstructions_are_scored_by_the_text_itself(client: Client, net: VAE) -> None:
    found = client.reconstruct(X, include_scores=True)
    mean = client.encode(X).mean
    assert np.array_equal(found.x, greedy(net, mean))
    expected = distortion(net, mean, X)
    np.testing.assert_allclose(found.reconstruction_error, expected, rtol=1e-4, atol=1e-4)


def test_the_queue_counts_all_that_a_reconstruction_decodes(
    client: Client, server: RunningServer
) -> None:
    def decoded(call: Callable[[], object]) -> float:
        before = server.metric("latentd_batch_rows_sum", graph="decoder")
        call()
        return server.metric("latentd_batch_rows_sum", graph="decoder") - before

    def scores_only() -> np.ndarray:
        (part,) = client.stream_reconstruct([X], include_scores=True, include_x=False)
        return part.elbo

    rows = len(X)
    assert decoded(lambda: client.reconstruct(X)) == rows
    requests = server.metric("latentd_queue_duration_seconds_count", graph="decoder")
    assert decoded(lambda: client.reconstruct(X, include_scores=True)) == 2 * rows
    found = server.metric("latentd_queue_duration_seconds_count", graph="decoder")
    assert found == requests + 1  # so admission sees both halves at once
    assert decoded(scores_only) == rows
    expected = client.reconstruct(X, include_scores=True).elbo
    np.testing.assert_allclose(scores_only(), expected, rtol=1e-5)


def test_a_drawn_latent_is_decoded_and_scored(client: Client, net: VAE) -> None:
    scored = client.reconstruct(X, draw=True, seed=5, include_scores=True)
    assert np.array_equal(scored.x, client.reconstruct(X, draw=True, seed=5).x)
    z = client.encode(X, draw=True, seed=5).z
    expected = distortion(net, z, X)
    np.testing.assert_allclose(scored.reconstruction_error, expected, rtol=1e-4, atol=1e-4)


def test_texts_are_compared_with_a_threshold_and_have_no_contributions(client: Client) -> None:
    x = Texts(["one", "two", "three"])
    plain = client.reconstruct(x, include_scores=True)
    assert plain.reconstruction_error is not None
    threshold = float(np.median(plain.reconstruction_error))
    for found in (
        client.score(x, seed=1, threshold=threshold),
        client.reconstruct(x, include_scores=True, threshold=threshold),
    ):
        np.testing.assert_allclose(found.reconstruction_error, plain.reconstruction_error)
        assert found.is_outlier is not None
        assert found.is_outlier.sum() == 1
    with pytest.raises(InvalidArgument, match="of a whole text, not of each byte"):
        client.score(x, include_contributions=True)


def test_the_noise_of_scores_has_a_cost(text_bundles: Path) -> None:
    manifest = bundle.load(text_bundles / "text" / "1").manifest
    cost = scoring.measure(None, manifest.default)
    assert cost.draw > 0
    assert cost.likelihood > 0


def test_the_elbo_and_the_bound_are_exact(client: Client, net: VAE) -> None:
    scores = client.score(X, draws=5, seed=3)
    encoding = client.encode(X)
    std = np.exp(encoding.log_var / 2)
    log_w, distortions = [], []
    for draw in range(5):
        noise = NoiseRange(3, 0, len(X), latents.POSTERIOR + draw)
        z = encoding.mean + std * latents.standard_normal([noise], (3,))
        distortions.append(distortion(net, z, X))
        log_ratio = stats.norm.logpdf(z) - stats.norm.logpdf(z, encoding.mean, std)
        log_w.append(log_ratio.sum(1) - distortions[-1])
    bound = np.logaddexp.reduce(np.array(log_w)) - np.log(5)
    np.testing.assert_allclose(scores.log_likelihood, bound, rtol=1e-4, atol=1e-3)
    elbo = -np.mean(distortions, axis=0) - scores.kl
    np.testing.assert_allclose(scores.elbo, elbo, rtol=1e-4, atol=1e-3)


def test_ways_begin_and_end_at_their_points(client: Client, net: VAE) -> None:
    steps = client.interpolate(DataPoint(X[3]), SampledPoint(7), steps=5)
    mean = client.encode(X[3:4]).mean
    assert np.array_equal(steps.x[:1], greedy(net, mean))
    assert np.array_equal(steps.x[-1:], client.sample(1, seed=7).x)


def test_parameters_are_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="decodes each byte given those before it"):
        client.decode(np.zeros((1, 3), np.float32), params=True)


def test_bytes_are_drawn_by_the_own_numbers(client: Client, net: VAE) -> None:
    samples = client.sample(60, seed=7, draw_x=True, include_z=True)
    assert np.array_equal(samples.z, client.sample(60, seed=7, include_z=True).z)
    choices = latents.uniform([NoiseRange(7, 0, 60)], LENGTH)
    rows = torch.tensor(np.concatenate((samples.z, choices), axis=1))
    with torch.no_grad():
        expected = text_decoder(net).decode(rows)
    sure = (expected.margin[:, 0] > 1e-5).numpy()
    assert sure.sum() > 50
    assert np.array_equal(samples.x[sure], expected.x.numpy()[sure])
    assert not np.array_equal(samples.x, client.sample(60, seed=7).x)
    assert np.array_equal(client.sample(9, seed=7, offset=30, draw_x=True).x, samples.x[30:39])
    chunks = client.stream_samples(60, seed=7, draw_x=True, chunk_rows=7)
    assert np.array_equal(np.concatenate([chunk.x for chunk in chunks]), samples.x)


def test_reconstructions_are_drawn_from_the_mean_or_a_draw(client: Client, net: VAE) -> None:
    of_mean = client.reconstruct(X, draw_x=True, seed=5)
    assert of_mean.seed == 5
    mean = client.encode(X).mean
    choices = latents.uniform([NoiseRange(5, 0, len(X), latents.POSTERIOR)], LENGTH)
    with torch.no_grad():
        rows = torch.tensor(np.concatenate((mean, choices), axis=1))
        expected = text_decoder(net).decode(rows)
    sure = (expected.margin[:, 0] > 1e-5).numpy()
    assert np.array_equal(of_mean.x[sure], expected.x.numpy()[sure])
    scored = client.reconstruct(X, draw_x=True, seed=5, include_scores=True)
    assert np.array_equal(scored.x, of_mean.x)
    greedy_error = client.reconstruct(X, include_scores=True).reconstruction_error
    np.testing.assert_allclose(scored.reconstruction_error, greedy_error)
    both = client.reconstruct(X, draw=True, draw_x=True, seed=5)
    assert not np.array_equal(both.x, of_mean.x)


def test_given_latents_are_drawn_from_with_a_seed(stub: VaeServiceStub) -> None:
    z = codec.to_tensor(np.zeros((20, 3), np.float32))
    request = pb.DecodeRequest(z=z, draw_x=True, format=pb.FORMAT_TEXT)
    first = stub.Decode(request)
    again = stub.Decode(pb.DecodeRequest(z=z, draw_x=True, seed=first.seed, format=pb.FORMAT_TEXT))
    assert first.x == again.x
    assert len(set(first.x.text.texts)) > 10


def test_the_client_draws_from_given_latents_and_in_streams(client: Client) -> None:
    mean = client.encode(X).mean
    drawn = client.decode(mean, draw_x=True, seed=5).x
    assert np.array_equal(drawn, client.reconstruct(X, draw_x=True, seed=5).x)
    parts = client.stream_reconstruct([X[:2], X[2:]], draw_x=True, seed=5)
    assert np.array_equal(np.concatenate([part.x for part in parts]), drawn)
    texts = to_texts(X)
    in_parts = client.stream_reconstruct([Texts(texts[:2]), Texts(texts[2:])], draw_x=True, seed=5)
    assert np.array_equal(np.concatenate([part.x for part in in_parts]), drawn)


def test_pictures_are_not_drawn(toy_bundles: Path) -> None:
    refused = pytest.raises(InvalidArgument, match="draw_x: only texts and rows with columns")
    with server_starter() as start, Client(start(toy_bundles).target) as client, refused:
        client.sample(2, draw_x=True)


def test_the_client_takes_and_gives_texts(client: Client) -> None:
    found = client.reconstruct(Texts(TEXTS))
    assert np.array_equal(found.x, client.reconstruct(X).x)
    assert found.texts == to_texts(found.x)
    assert np.array_equal(client.score(Texts(TEXTS), seed=1).elbo, client.score(X, seed=1).elbo)
    way = client.interpolate(DataPoint(Texts(["bc"])), SampledPoint(7), steps=4)
    assert way.texts[-1] == client.sample(1, seed=7).texts[0]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (Texts(["a", "\ud800"]), r"x.text.texts\[1\]: 'utf-8' codec can't encode"),
        (Texts([b"a"]), r"x.text.texts\[0\]: bytes is not str. Pass Texts of str"),
        (np.array(["a"]), r"strings are not numbers. Texts go in Texts\(list of str\)"),
        (np.array(["a"], object), "strings are not numbers"),
    ],
    ids=["surrogate", "bytes", "array", "objects"],
)
def test_the_client_names_strings_that_it_cannot_send(client: Client, x: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        client.encode(x)


def test_a_list_of_strings_names_files(client: Client) -> None:
    with pytest.raises(FileNotFoundError) as error:
        client.encode(["anna"])
    assert "pass Texts([...])" in error.value.__notes__[0]


def test_the_terms_of_a_text_are_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="of a whole text, not of each byte"):
        client.reconstruct(X, include_contributions=True)


def test_pictures_have_no_texts(toy_bundles: Path) -> None:
    with server_starter() as start, Client(start(toy_bundles).target) as client:
        samples = client.sample(2)
    with pytest.raises(TypeError, match="rows of uint8 4x4 are not texts"):
        _ = samples.texts


def test_texts_travel_as_text(stub: VaeServiceStub, client: Client) -> None:
    given = pb.Rows(text=pb.Texts(texts=TEXTS))
    encoded = stub.Encode(pb.EncodeRequest(x=given))
    assert np.array_equal(codec.from_tensor(encoded.mean), client.encode(X).mean)
    request = pb.ReconstructRequest(x=given, format=pb.FORMAT_TEXT)
    assert codec.from_rows(stub.Reconstruct(request).x) == to_texts(client.reconstruct(X).x)
    sampled = stub.Sample(pb.SampleRequest(count=30, seed=7, format=pb.FORMAT_TEXT))
    assert codec.from_rows(sampled.x) == to_texts(client.sample(30, seed=7).x)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pb.Rows(text=pb.Texts(texts=["a", "abcdefgh"])), r"x.text.texts\[1\]: has 8 bytes .* 7"),
        (pb.Rows(text=pb.Texts(texts=["a\0b"])), r"x.text.texts\[0\]: holds a NUL character"),
        (pb.Rows(text=pb.Texts()), "x.text.texts: 0 rows sent"),
        (pb.Rows(images=pb.Images(files=[b""])), "x: image files sent, and this model's rows are"),
        (pb.Rows(), "x: missing. Send a tensor of uint8 .*, or texts"),
        (rows_of([[97, 0, 0, 98, 0, 0, 0, 0]]), r"x\[0\]: has bytes after its end, the first 0"),
        (rows_of([[97] * 8]), r"x\[0\]: has no end: its last byte must be 0"),
    ],
)
def test_rows_that_are_no_texts_are_refused(stub: VaeServiceStub, rows: pb.Rows, said: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.Encode(pb.EncodeRequest(x=rows))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(said, error.value.details())


def test_a_stream_reports_texts_that_are_too_long(stub: VaeServiceStub) -> None:
    texts = pb.Rows(text=pb.Texts(texts=["a", "abcdefgh", "bc"]))
    request = pb.StreamReconstructRequest(x=texts, format=pb.FORMAT_TEXT, include_scores=True)
    (response,) = stub.StreamReconstruct(iter([request]))
    assert [error.row for error in response.errors] == [1]
    assert "has 8 bytes in UTF-8; the limit is 7" in response.errors[0].description
    assert len(response.x.text.texts) == len(response.elbo) == 2


def test_many_texts_are_read_and_written_in_the_thread_pool(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def run(function: Callable[..., Any], *args: Any) -> Any:
        calls.append(function)
        return function(*args)

    def in_pool(call: Coroutine[Any, Any, Any]) -> bool:
        calls.clear()
        with pytest.raises(StopIteration):
            call.send(None)
        return bool(calls)

    monkeypatch.setattr(fields, "run_in_executor", run)
    monkeypatch.setattr(fields, "_QUICK", 4000)
    (model,) = server.server.repository.models()
    x = np.resize(X, (1000, LENGTH))
    for rows, is_many in ((200, False), (1000, True)):
        given = pb.Rows(text=pb.Texts(texts=to_texts(x[:rows])))
        for read in (fields.read_rows, fields.read_rows_lenient):
            assert in_pool(read(given, model, "x")) is is_many
        write = fields.write_rows(x[:rows], pb.FORMAT_TEXT, pb.SampleResponse())
        assert in_pool(write) is is_many
    assert in_pool(fields.read_rows(pb.Rows(tensor=codec.to_tensor(x)), model, "x"))


def test_uniform_numbers_are_uniform_and_belong_to_their_row() -> None:
    numbers = latents.uniform([NoiseRange(5, 0, 4000)], LENGTH)
    assert numbers.dtype == np.float32
    assert 0 < numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    apart = [latents.uniform([NoiseRange(5, row, 1)], LENGTH) for row in (0, 77, 3999)]
    assert np.array_equal(np.concatenate(apart), numbers[[0, 77, 3999]])
    normal = latents.standard_normal([NoiseRange(5, 0, 4000)], (LENGTH,))
    assert abs(np.corrcoef(normal.ravel(), numbers.ravel())[0, 1]) < 0.02
