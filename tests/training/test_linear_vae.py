"""The linear path: the best linear VAE of the rows, from which a run starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.utils._python_dispatch import TorchDispatchMode

from latentd.training import linear_vae, networks
from latentd.training.config import Config
from latentd.training.dataset import Dataset, Rows, RowSpec
from latentd.training.linear_vae import LinearVAE
from latentd.training.model import VAE, build
from latentd.training.trainer import Trainer


def rows(count: int, shape: tuple[int, ...], factors: int) -> torch.Tensor:
    """Rows of a linear model with a little noise, within [0, 1]."""
    draws = np.random.default_rng(0)
    basis = draws.normal(size=(factors, int(np.prod(shape))))
    x = draws.normal(size=(count, factors)) @ basis * 0.02
    x = 0.5 + x + draws.normal(size=x.shape) * 0.01
    return torch.from_numpy(np.clip(x, 0, 1).astype(np.float32)).reshape(count, *shape)


def config(shape: tuple[int, ...], **settings: object) -> Config:
    return networks.resolve_architecture(
        Config(architecture="resnet", latent_size=5, **settings),  # type: ignore[arg-type]
        shape,
    )


@pytest.mark.parametrize("shape", [(8, 9), (8, 8, 3)])
def test_a_run_starts_with_the_exact_elbo_of_probabilistic_pca(shape: tuple[int, ...]) -> None:
    """Its posterior is exact, so its ELBO equals the log-likelihood."""
    x = rows(500, shape, 3)
    vae = build(config(shape, min_std=1e-4), RowSpec(shape, "float32"))
    assert isinstance(vae, VAE)
    vae.fit_linear_path(x, 0)
    with torch.no_grad():
        draws = torch.Generator().manual_seed(0)
        elbo = torch.stack([vae(x, draws).elbo for _ in range(20)]).mean()
    found = PCA(5).fit(x.flatten(1).double().numpy())
    assert elbo.item() == pytest.approx(found.score(x.flatten(1).double().numpy()), rel=2e-3)


@pytest.mark.parametrize("shape", [(130, 70), (66, 129, 3)])
def test_large_images_are_averaged_first(shape: tuple[int, ...]) -> None:
    small = torch.rand((100, 4, 4, *shape[2:]), generator=torch.Generator().manual_seed(0))
    h = small.unsqueeze(1) if len(shape) == 2 else small.movedim(3, 1)
    h = torch.nn.functional.interpolate(h, size=shape[:2], mode="bilinear")
    x = h[:, 0] if len(shape) == 2 else h.movedim(1, 3)
    linear = LinearVAE(shape, 48)
    linear.fit(x, 0)
    assert linear.square > 1
    error = (linear.decode(linear.encode(x)[0]) - x).square().mean()
    assert error < 0.02 * (x - x.mean(0)).square().mean()


@pytest.mark.parametrize("count", [12, 24, 60])
def test_few_rows_do_not_promise_too_little_noise(count: int) -> None:
    """What components leave of the rows that they are computed from is less than of others."""
    linear = LinearVAE((8, 8), 30)
    linear.fit(rows(2000, (8, 8), 3)[:count], 0)
    others = rows(2000, (8, 8), 3)[1000:]
    error = (linear.decode(linear.encode(others)[0]) - others).square().mean().sqrt()
    assert linear.std > 0.6 * error


def test_one_row_is_its_own_center() -> None:
    linear = LinearVAE((8, 8), 3)
    linear.fit(rows(1, (8, 8), 3), 0)
    assert all(buffer.isfinite().all() for buffer in linear.buffers())
    assert torch.allclose(linear.decode(torch.ones(1, 3)), rows(1, (8, 8), 3))


class LargestFloats(TorchDispatchMode):
    """Records the number of values of the largest tensor of floats that was computed."""

    values = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            self.values = max(self.values, found.numel())
        return found


def test_rows_become_floats_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows may be larger than the memory."""
    monkeypatch.setattr(linear_vae, "_MAX_VALUES", 3 * 130 * 130)
    x = torch.randint(0, 256, (60, 130, 130), dtype=torch.uint8)
    linear = LinearVAE((130, 130), 4)
    with LargestFloats() as largest:
        linear.fit(x, 0)
    assert 0 < largest.values < x.numel() / 8


def test_more_latents_than_components_stay_unused() -> None:
    linear = LinearVAE((8, 8), 30)
    linear.fit(rows(10, (8, 8), 3), 0)
    mean, log_var = linear.encode(rows(10, (8, 8), 3))
    assert (linear.scale > 0).sum() < 10
    assert not mean[:, 10:].any()
    assert not log_var[:, 10:].any()


@pytest.mark.parametrize("settings", [{}, {"fixed_std": 0.1}, {"model": "ae"}])
def test_training_improves_on_the_start(settings: dict[str, object]) -> None:
    x = rows(300, (8, 8), 3)
    x = (x * 4 - 1.5).clamp(0, 1)  # not linear
    parts = [Rows(x[at : at + 100], None) for at in (0, 100, 200)]
    dataset = Dataset(*parts, own_test=False, digest="")
    chosen = config((8, 8), min_std=0.02, batch_size=20, ema_decay=0.9, **settings)
    run = Trainer(chosen, dataset, torch.device("cpu"))
    run.fit_linear_path()
    lines = [run.epoch() for _ in range(15)]
    assert lines[-1]["validation_elbo"] > lines[0]["validation_elbo"]
    net = run.model.net if hasattr(run.model, "net") else run.model
    averaged = run.eval_model.net if hasattr(run.eval_model, "net") else run.eval_model
    assert torch.equal(net.linear.components, averaged.linear.components)
