"""A new likelihood is one class in training: it trains, is exported, and serving scores with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentd import bundle
from latentd.client import Client
from latentd.jobs.plan import OutputSpec
from latentd.jobs.reconstruct import LocalReconstructor
from latentd.readers.rows import Chunk
from latentd.shapes import Shape
from latentd.training import checkpoint
from latentd.training.config import Config
from latentd.training.likelihoods import LIKELIHOODS
from latentd.training.likelihoods.likelihood import PixelLikelihood
from latentd.training.model import gaussian_kl, log_likelihood
from tests.support.exports import export, source, train

Cli = Callable[..., tuple[int, str, str]]


class Laplace(PixelLikelihood):
    """params: median and log scale of each pixel."""

    outputs, parameters, bounded, density = 2, ("median", "log_scale"), False, True

    def params(self, raw: Tensor) -> Tensor:
        return raw

    def around(self, raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return torch.stack((mean + std * raw[:, 0], std.log() + raw[:, 1]), dim=1)

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        median, log_scale = params[:, 0], params[:, 1]
        return (x - median).abs() * (-log_scale).exp() + log_scale + math.log(2)

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].clamp(0, 1)


@pytest.fixture
def exported(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bundle.Bundle:
    """The bundle of a model with the new likelihood."""
    (field,) = (f for f in dataclasses.fields(Config) if f.name == "likelihood")
    choices = (*field.metadata["choices"], "laplace")
    monkeypatch.setattr(field, "metadata", {**field.metadata, "choices": choices})
    monkeypatch.setitem(LIKELIHOODS, "laplace", lambda config: Laplace())
    data = source(tmp_path, (6, 7), "float32")
    path = train(cli, tmp_path / "run", "--data", data, "--likelihood", "laplace")
    return export(cli, path, tmp_path / "bundles")


def test_new_likelihood_is_served_as_it_was_trained(
    exported: bundle.Bundle, tmp_path: Path, start_server: Callable[..., object]
) -> None:
    assert exported.manifest.likelihood == bundle.Likelihood(
        "laplace", ("median", "log_scale"), bounded=False, contributions=Shape.parse([6, 7])
    )
    x = np.random.default_rng(1).random((20, 6, 7), np.float32)
    model = checkpoint.load(tmp_path / "run" / "best.pt").model()
    with torch.no_grad():
        mean, log_var = model.encode(torch.from_numpy(x))
        error = -log_likelihood(model, torch.from_numpy(x), model.decode(mean)).numpy()
        kl = gaussian_kl(mean.double(), log_var.double()).numpy()
    with Client(start_server(tmp_path / "bundles").target) as client:
        info = client.get_model()
        assert (info.likelihood, info.parameters) == ("laplace", ("median", "log_scale"))
        reconstructed = client.reconstruct(x, include_scores=True, include_contributions=True)
        scores = client.score(x, draws=64, seed=1)
    np.testing.assert_allclose(reconstructed.reconstruction_error, error, atol=1e-3)
    np.testing.assert_allclose(reconstructed.elbo, -error - kl, atol=1e-3)
    sums = reconstructed.contributions.sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums, reconstructed.reconstruction_error, rtol=1e-6)
    assert (scores.log_likelihood >= scores.elbo).all()
    chunk = Chunk(np.arange(len(x)), [""] * len(x), x, [])
    job = LocalReconstructor(exported, OutputSpec(), "cpu").run(chunk)
    np.testing.assert_allclose(job.elbo, reconstructed.elbo, rtol=1e-6)
