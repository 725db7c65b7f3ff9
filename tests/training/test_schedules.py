"""How the learning rate and the weight of the KL change."""

from __future__ import annotations

import math

import pytest

from latentd.training.config import Config
from latentd.training.schedules import kl_weight, learning_rate


@pytest.mark.parametrize(
    ("schedule", "epoch", "factor"),
    [
        ("constant", 0, 1),
        ("constant", 10, 1),
        ("cosine", 0, 1),
        ("cosine", 5, 0.5),
        ("cosine", 10, 0),
        ("one-cycle", 0, 0.04),
        ("one-cycle", 1.5, 0.52),
        ("one-cycle", 3, 1),
        ("one-cycle", 6.5, 0.5),
        ("one-cycle", 10, 0),
    ],
)
def test_learning_rate(schedule: str, epoch: float, factor: float) -> None:
    config = Config(epochs=10, learning_rate=0.01, lr_schedule=schedule)
    assert math.isclose(learning_rate(config, epoch), 0.01 * factor, abs_tol=1e-12)


def test_learning_rate_warms_up_with_every_schedule() -> None:
    config = Config(epochs=10, learning_rate=0.01, lr_warmup_epochs=4)
    assert [learning_rate(config, epoch) for epoch in (0, 1, 4, 9)] == [0, 0.0025, 0.01, 0.01]


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, {0: 1, 8: 1}),
        ({"beta": 4}, {0: 4, 8: 4}),
        ({"kl_warmup_epochs": 2, "beta": 0.5}, {0: 0, 1: 0.25, 2: 0.5, 8: 0.5}),
        ({"kl_cycles": 2}, {0: 0, 1: 0.5, 2: 1, 3.5: 1, 4: 0, 5: 0.5, 7.9: 1}),
    ],
)
def test_kl_weight(settings: dict[str, float], weights: dict[float, float]) -> None:
    config = Config(epochs=8, **settings)  # type: ignore[arg-type]
    assert {epoch: kl_weight(config, epoch) for epoch in weights} == weights
