"""What a step does to the weights, and what happens when they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentd.training import checkpoint, data, networks
from latentd.training.config import Config
from latentd.training.dataset import MAX_VALUES
from latentd.training.errors import RunFailed
from latentd.training.model import Terms
from latentd.training.trainer import Trainer, evaluate
from tests.support.runs import TINY, lines

Cli = Callable[..., tuple[int, str, str]]


def tiny_run(**settings: Any) -> Trainer:
    config = Config(**{"hidden_size": 16, "latent_size": 3, **settings})
    dataset = data.load(config)
    return Trainer(
        networks.resolve_architecture(config, dataset.spec.shape), dataset, torch.device("cpu")
    )


def test_losses_are_summed_over_a_row_and_averaged_over_rows() -> None:
    run = tiny_run(likelihood="bernoulli")
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    terms = evaluate(run.model, run.dataset.test.x, seed=0)
    assert math.isclose(terms["distortion"], 64 * math.log(2), rel_tol=1e-6)  # logits of 0
    assert terms["rate"] == 0


def test_averaged_weights_are_validated_and_saved(cli: Cli, tmp_path: Path) -> None:
    assert (
        cli("train", "--out", tmp_path / "run", *TINY, "--ema-decay", 0.5, "--batch-size", 500)[0]
        == 0
    )
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved.raw_weights is not None
    run = tiny_run(ema_decay=0.5, batch_size=500, epochs=4)
    follows = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    for step in range(12):
        if not run.step_number:
            order = torch.randperm(len(run.dataset.train), generator=run.order)
        run.step(run.dataset.train.x[order[500 * run.step_number :][:500]])
        decay = min(0.5, (1 + step) / (10 + step))
        for name, weight in run.model.state_dict().items():
            follows[name] = decay * follows[name] + (1 - decay) * weight
        if run.step_number == run.steps:
            run.history.append({})
            run._start_epoch()
    torch.testing.assert_close(saved.raw_weights, dict(run.model.state_dict()))
    torch.testing.assert_close(saved.weights, follows)
    assert not torch.equal(saved.weights["encoder.1.weight"], saved.raw_weights["encoder.1.weight"])
    expected = evaluate(saved.model(), run.dataset.validation.x, 0)["elbo"]
    assert lines(tmp_path / "run")[4]["validation_elbo"] == expected


def test_bfloat16_learns_the_same_as_float32() -> None:
    ends = {}
    for precision in ("float32", "bfloat16"):
        run = tiny_run(precision=precision, hidden_size=64, learning_rate=5e-3)
        ends[precision] = [run.epoch() for _ in range(8)][-1]
        assert all(weight.dtype == torch.float32 for weight in run.model.parameters())
    elbos = [line["validation_elbo"] for line in ends.values()]
    assert elbos[0] != elbos[1]
    assert abs(elbos[0] - elbos[1]) < 2


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_non_finite_step_is_skipped_and_counted(optimizer: str) -> None:
    run = tiny_run(optimizer=optimizer)
    parameter = next(run.model.parameters())
    gradients = iter(range(1000))
    parameter.register_hook(lambda grad: grad * math.nan if next(gradients) == 1 else grad)
    line = run.epoch()
    assert line["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert math.isfinite(line["train_elbo"])
    assert run.epoch()["skipped_steps"] == 0


def test_diverged_run_fails_with_a_message() -> None:
    run = tiny_run()
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match=r"diverged in epoch 1: 12 of 12 steps .* --learning-rate"):
        run.epoch()


def test_log_has_the_schedule_values_of_the_last_step() -> None:
    """The weight of the KL is largest at the end of a cycle. It falls in the next step."""
    run = tiny_run(batch_size=500, epochs=2, kl_cycles=2, lr_schedule="cosine", learning_rate=0.01)
    line = run.epoch()
    assert line["kl_weight"] == 1
    assert math.isclose(line["learning_rate"], 0.01 * (1 + math.cos(math.pi / 3)) / 2)


def test_large_rows_are_evaluated_in_small_batches() -> None:
    values = []

    def model(x: torch.Tensor, _: torch.Generator) -> Terms:
        values.append(x.numel())
        return Terms(*torch.zeros(3, len(x)))

    model.output_shape = (300, 300)  # type: ignore[attr-defined]
    evaluate(model, torch.zeros(100, 300, 300, dtype=torch.uint8), seed=0)  # type: ignore[arg-type]
    assert sum(values) == 100 * 300 * 300
    assert max(values) <= MAX_VALUES


def test_long_gradient_is_clipped() -> None:
    run = tiny_run(clip_grad_norm=0.01)
    run.step(run.dataset.train.x[:32])
    norms = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
    assert math.isclose(torch.stack(norms).norm().item(), 0.01, rel_tol=1e-3)
