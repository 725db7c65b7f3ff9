"""Bundles of the release before, in format 1, are served as they were: the same bits as their
graphs give, and what that release answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from latentd import bundle, latents
from latentd.client import Client, DataPoint, SampledPoint
from latentd.errors import InvalidArgument
from latentd.latents import NoiseRange

FORMAT_1 = Path(__file__).parents[2] / "data" / "format1"
MODELS = ("digits", "points")
SAMPLE_SEED, DRAW_SEED, SCORE_SEED = 7, 3, 5
STEPS = 5


@pytest.fixture(scope="module")
def client(module_servers) -> Iterator[Client]:
    chosen = {"max_batch_rows": 64, "default_model": "digits"}
    server = module_servers(FORMAT_1, provider="cpu", **chosen)
    with Client(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def answers() -> Mapping[str, np.ndarray]:
    """x, and what the server of the release before answered to it, on another machine."""
    with np.load(FORMAT_1 / "answers.npz") as file:
        return dict(file)


def run(model: str, graph: str, *outputs: str, **inputs: np.ndarray) -> list[np.ndarray]:
    """A graph of the bundle in a session of ONNX Runtime, without the server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = FORMAT_1 / model / "1" / graph
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, inputs)


def encoded(model: str, x: np.ndarray) -> np.ndarray:
    return run(model, bundle.ENCODER, "mean", x=x)[0]


def decoded(model: str, z: np.ndarray) -> np.ndarray:
    return run(model, bundle.DECODER, "x", z=z)[0]


def check(found: Any, exact: np.ndarray | None, stored: np.ndarray) -> None:
    if exact is not None:
        assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
        assert found.tobytes() == exact.tobytes()
    if stored.dtype == np.uint8:  # rounded: another machine may round the other way
        assert np.abs(found.astype(int) - stored).max() <= 1
    else:
        np.testing.assert_allclose(found, stored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_encoded_and_reconstructed_as_before(client, answers, model):
    x = answers["x"]
    encoding = client.encode(x, model=model)
    mean = encoded(model, x)
    check(encoding.mean, mean, answers[f"{model}.mean"])
    back = client.reconstruct(x, model=model)
    check(back.x, decoded(model, mean), answers[f"{model}.reconstruction"])


@pytest.mark.parametrize("model", MODELS)
def test_latents_are_decoded_as_before(client, answers, model):
    z = answers[f"{model}.mean"]
    x, params = run(model, bundle.DECODER, "x", "params", z=z)
    check(client.decode(z, model=model).x, x, answers[f"{model}.decoded"])
    found = client.decode(z, params=True, model=model)
    check(found.params, params, answers[f"{model}.params"])


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_sampled_as_before(client, answers, model):
    """An autoencoder of format 1 too: it always had the prior."""
    stored = answers[f"{model}.sample"]
    z = latents.standard_normal([NoiseRange(SAMPLE_SEED, 0, len(stored))], (4,))
    samples = client.sample(len(stored), seed=SAMPLE_SEED, include_z=True, model=model)
    assert samples.z is not None
    assert samples.z.tobytes() == z.tobytes()
    check(samples.x, decoded(model, z), stored)
    ends = (SampledPoint(SAMPLE_SEED, 0), SampledPoint(SAMPLE_SEED, 1))
    path = client.interpolate(*ends, steps=2, model=model)
    check(path.x, decoded(model, z[:2]), stored[:2])


@pytest.mark.parametrize("model", MODELS)
def test_ends_are_interpolated_as_before(client, answers, model):
    x = answers["x"]
    path = client.interpolate(
        DataPoint(x[0]), DataPoint(x[1]), steps=STEPS, include_z=True, model=model
    )
    start, end = (encoded(model, x[i : i + 1])[0] for i in (0, 1))
    z = latents.slerp(start, end, STEPS)
    assert path.z.tobytes() == z.tobytes()
    check(path.x, decoded(model, z), answers[f"{model}.interpolation"])


def test_vae_draws_and_scores_as_before(client, answers):
    x = answers["x"]
    encoding = client.encode(x, draw=True, seed=DRAW_SEED)
    check(
        encoding.log_var,
        run("digits", bundle.ENCODER, "log_var", x=x)[0],
        answers["digits.log_var"],
    )
    check(encoding.z, None, answers["digits.z"])
    scored = client.reconstruct(x, include_scores=True)
    for name in bundle.SCORES:
        np.testing.assert_allclose(
            getattr(scored, name), answers[f"digits.{name}"], rtol=0, atol=1e-4
        )
    scores = client.score(x, draws=8, seed=SCORE_SEED)
    for name in ("elbo", "log_likelihood"):
        stored = answers[f"digits.score.{name}"]
        np.testing.assert_allclose(getattr(scores, name), stored, rtol=0, atol=1e-4)


def test_autoencoder_has_points_and_no_scores(client, answers):
    x = answers["x"]
    assert client.encode(x, model="points").log_var is None
    for refused in (
        lambda: client.encode(x, draw=True, model="points"),
        lambda: client.score(x, model="points"),
        lambda: client.reconstruct(x, include_scores=True, model="points"),
    ):
        with pytest.raises(InvalidArgument, match="points encodes each row to a point"):
            refused()


@pytest.mark.parametrize(
    ("model", "posterior", "likelihood", "parameters"),
    [
        ("digits", "gaussian", "bernoulli", ("logit",)),
        ("points", "point", "discretized-logistic", ("mean", "log_scale")),
    ],
)
def test_model_is_described_as_format_2(client, model, posterior, likelihood, parameters):
    info = client.get_model(model=model)
    assert (info.posterior, info.prior, info.likelihood) == (
        posterior,
        "standard-normal",
        likelihood,
    )
    assert info.parameters == parameters
    assert (info.default.x.shape, info.default.z, info.axes) == ((8, 8), (4,), {})
