"""Somebody's own VAE, with a likelihood in its card: every call and jobs work, as torch computes.

The net, its training and its export are plain PyTorch, without any code of latentd.
"""

from __future__ import annotations

import copy
import math
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from latentd import bundle
from latentd.__main__ import main
from latentd.client import Client, DataPoint
from latentd.training.adopt import adopt, sources
from tests.support.server import RunningServer, server_starter

Z = 32
STEPS = 200
CARD = """
source = "a test"
license = "MIT"
range = [-1.0, 1.0]
scale = 1.0
shift = 0.0
prior = "standard-normal"
likelihood = { name = "gaussian", std = "log_var" }
"""


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Encoder(nn.Module):
    """(n, 1, 8, 8) from -1 to 1 -> mean and log-variance of z."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            Residual(16),
            nn.Conv2d(16, 32, 4, 2, 1),
            Residual(32),
            nn.Flatten(),
        )
        self.mean, self.log_var = nn.Linear(512, Z), nn.Linear(512, Z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_var(h)


class Decoder(nn.Module):
    """z -> the mean of each pixel, and the log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(Z, 512),
            nn.Unflatten(1, (32, 4, 4)),
            Residual(32),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            Residual(16),
        )
        self.mean, self.log_var = nn.Conv2d(16, 1, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(z)
        return self.mean(h), self.log_var(h).clamp(-4, 4)


def net_form(x: np.ndarray) -> Tensor:
    """Pixels of clients as the net takes them."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).double() / 127.5 - 1


class Vae(NamedTuple):
    encoder: Encoder
    decoder: Decoder

    def encode(self, x: Tensor) -> Independent:
        mean, log_var = self.encoder(x)
        return Independent(Normal(mean, (log_var / 2).exp()), 1)

    def decode(self, z: Tensor) -> Independent:
        mean, log_var = self.decoder(z)
        return Independent(Normal(mean, (log_var / 2).exp()), 3)

    def kl(self, posterior: Independent) -> Tensor:
        zero = torch.zeros_like(posterior.mean)
        return kl_divergence(posterior, Independent(Normal(zero, zero + 1), 1))


def trained(x: np.ndarray) -> Vae:
    torch.manual_seed(0)
    vae = Vae(Encoder(), Decoder())
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    rows = net_form(x).float()
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (64,))]
        posterior = vae.encode(batch)
        loss = vae.kl(posterior) - vae.decode(posterior.rsample()).log_prob(batch)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return Vae(vae.encoder.eval(), vae.decoder.eval())


def export(vae: Vae, folder: Path) -> tuple[Path, Path]:
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    nets = (vae.encoder, torch.zeros(2, 1, 8, 8)), (vae.decoder, torch.zeros(2, Z))
    names = ("mean", "log_var"), ("x_mean", "x_log_var")
    for (net, example), outputs, path in zip(nets, names, paths, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                (example,),
                path,
                dynamo=False,
                input_names=["in"],
                output_names=list(outputs),
                dynamic_axes={key: {0: "n"} for key in ("in", *outputs)},
            )
    return paths


class Adopted(NamedTuple):
    vae: Vae  # in float64, as its own numbers are
    x: np.ndarray
    bundle: Path
    server: RunningServer
    lines: str


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adopted]:
    folder = tmp_path_factory.mktemp("owner")
    x = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    np.save(folder / "rows.npy", x)
    vae = trained(x)
    encoder, decoder = export(vae, folder)
    tensors = '[tensors]\ndecoded_x = "x_mean"\ndecoded_width = "x_log_var"\n'
    (folder / "card.toml").write_text(CARD + tensors)
    words = ("adopt", "--onnx", encoder, decoder, "--card", folder / "card.toml")
    words += ("--bundles", folder / "models", "--name", "digits", "--rows", folder / "rows.npy")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
        assert main([str(word) for word in words]) == 0, lines
    vae = Vae(vae.encoder.double(), vae.decoder.double())
    with torch.no_grad(), server_starter() as start:
        server = start(folder / "models")
        yield Adopted(vae, x, folder / "models" / "digits" / "1", server, "\n".join(lines))


@pytest.fixture
def client(adopted: Adopted) -> Iterator[Client]:
    with Client(adopted.server.target) as connected:
        yield connected


N_LOG_2 = 64 * math.log(2)
"""The net has pixels from -1 to 1, and Score from 0 to 1."""


def pixels(decoded: Independent) -> np.ndarray:
    levels = ((decoded.mean + 1) * 127.5).permute(0, 2, 3, 1)
    rounded: np.ndarray = levels.round().clip(0, 255).numpy().astype(int)
    return rounded


def test_report_names_the_likelihood_and_the_percentiles(adopted: Adopted) -> None:
    assert "percentiles of scores: of 1797 rows" in adopted.lines
    assert "nats likelier with their own latents than with others" in adopted.lines


def test_modules_in_memory_become_the_same_model(adopted: Adopted, tmp_path: Path) -> None:
    halves = [copy.deepcopy(half).float() for half in adopted.vae]
    np.save(tmp_path / "rows.npy", adopted.x)
    card = tomllib.loads(CARD) | {"sizes": {"h": 8, "w": 8}}
    folder = adopt(
        sources.pair(*halves), card, tmp_path / "models", "m", rows=tmp_path / "rows.npy"
    )
    here, there = (bundle.load(path).manifest for path in (folder, adopted.bundle))
    assert (here.x, here.z, here.likelihood) == (there.x, there.z, there.likelihood)
    for name in bundle.SCORES:
        own, others = (manifest.training_scores[name] for manifest in (here, there))
        np.testing.assert_allclose(own, others, rtol=1e-4, atol=1e-2)


def test_calls_answer_as_the_owner_computes(adopted: Adopted, client: Client) -> None:
    x, vae = adopted.x[:20], adopted.vae
    posterior = vae.encode(net_form(x))
    encoding = client.encode(x)
    np.testing.assert_allclose(encoding.mean, posterior.mean, atol=1e-4)
    np.testing.assert_allclose(encoding.log_var, posterior.variance.log(), atol=1e-4)
    decoded = vae.decode(posterior.mean)
    assert np.abs(client.decode(encoding.mean).x - pixels(decoded)).max() <= 1
    reconstruction = client.reconstruct(x, include_scores=True)
    assert np.abs(reconstruction.x - pixels(decoded)).max() <= 1
    log_p, kl = decoded.log_prob(net_form(x)) + N_LOG_2, vae.kl(posterior)
    np.testing.assert_allclose(reconstruction.reconstruction_error, -log_p, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(reconstruction.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(reconstruction.elbo, log_p - kl, rtol=1e-4, atol=1e-2)


def test_samples_and_paths_are_decoded_latents(adopted: Adopted, client: Client) -> None:
    samples = client.sample(6, seed=3, include_z=True)
    z = torch.tensor(samples.z).double()
    assert np.abs(samples.x - pixels(adopted.vae.decode(z))).max() <= 1
    path = client.interpolate(*map(DataPoint, adopted.x[:2]), steps=5, include_z=True)
    z = torch.tensor(path.z).double()
    ends = adopted.vae.encode(net_form(adopted.x[:2])).mean
    np.testing.assert_allclose(z[[0, -1]], ends, atol=1e-4)
    assert np.abs(path.x - pixels(adopted.vae.decode(z))).max() <= 1


def test_scores_are_the_owners_bounds(adopted: Adopted, client: Client) -> None:
    """With one draw, which Encode gives too, both bounds are known."""
    x, vae = adopted.x[:8], adopted.vae
    scores = client.score(x, draws=1, seed=1)
    encoding = client.encode(x, draw=True, seed=1)
    posterior, z = vae.encode(net_form(x)), torch.tensor(encoding.z).double()
    log_p, kl = vae.decode(z).log_prob(net_form(x)) + N_LOG_2, vae.kl(posterior)
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(scores.elbo, log_p - kl, rtol=1e-4, atol=1e-2)
    prior = Independent(Normal(torch.zeros_like(z), 1.0), 1)
    bound = log_p + prior.log_prob(z) - posterior.log_prob(z)
    np.testing.assert_allclose(scores.log_likelihood, bound, rtol=1e-4, atol=1e-2)


def test_job_has_percentiles(adopted: Adopted, tmp_path: Path) -> None:
    odd = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.save(tmp_path / "x.npy", np.concatenate([adopted.x[:40], odd]))
    words = ("batch", "--input", tmp_path / "x.npy", "--bundle", adopted.bundle)
    words += ("--output", tmp_path / "out", "--provider", "cpu", "--processes", 1)
    assert main([str(word) for word in words]) == 0
    table = pq.read_table(tmp_path / "out" / "shards")
    error = table["reconstruction_error"].to_numpy()
    posterior = adopted.vae.encode(net_form(adopted.x))
    own = -(adopted.vae.decode(posterior.mean).log_prob(net_form(adopted.x)) + N_LOG_2)
    np.testing.assert_allclose(error[:40], own[:40], rtol=1e-4, atol=1e-2)
    percentiles = table["reconstruction_error_percentile"].to_numpy()
    share = (own[None, :] <= own[:40, None]).double().mean(1) * 100
    np.testing.assert_allclose(percentiles[:40], share, atol=1.5)
    assert (percentiles[40:] == 100).all()
