"""Training where there is an NVIDIA GPU."""

from __future__ import annotations

import math

import pytest
import torch

from training import data, networks
from training.config import Config
from training.model import observe
from training.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda")


def run(**settings: object) -> Run:
    config = Config(
        likelihood="bernoulli", binarisation="dynamic", precision="bfloat16", ema=0.99, **settings
    )
    dataset = data.load(config)
    return Run(networks.fitted(config, dataset.spec.shape), dataset, CUDA)


@pytest.mark.parametrize("net", ["mlp", "gated", "conv"])
def test_it_learns(net: str) -> None:
    learner = run(net=net)
    lines = [learner.epoch() for _ in range(10)]
    assert lines[-1]["validation_elbo"] > lines[0]["validation_elbo"] + 1
    assert not any(line["skipped_steps"] for line in lines)


def test_a_non_finite_step_changes_nothing() -> None:
    learner = run()
    learner.step(learner.dataset.train.x[:32])
    before = [parameter.clone() for parameter in learner.parameters]
    learner.parameters[0].register_hook(lambda gradient: gradient * math.nan)
    learner.step(learner.dataset.train.x[:32])
    assert all(map(torch.equal, before, learner.parameters))
    assert learner.sums[-1] == 1  # of two steps


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_a_step_does_not_wait_for_the_gpu(net: str) -> None:
    learner = run(net=net)
    batch = learner.dataset.train.x[:32]
    learner.step(batch)  # the first makes what Adam keeps
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_binarised_pixels_are_white_as_often_as_they_are_bright() -> None:
    x = torch.arange(256, dtype=torch.uint8, device=CUDA).repeat(20_000, 1)
    often = observe(x, torch.Generator(CUDA).manual_seed(0), binarise=True).double().mean(0).cpu()
    torch.testing.assert_close(
        often, torch.arange(256) / 255.0, atol=0.02, rtol=0, check_dtype=False
    )
