"""The code as features: what a linear classifier reads off it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.training.comparison.claim import AE, MODELS, VAE, Claim, Key, Numbers, Spread, judge_of
from latentd.training.comparison.stage import Stage
from latentd.training.evaluation.probe import ROWS, probe

_ACCURACY: Final = "accuracy of a linear probe on the mean of z, test rows"


def _measure(stage: Stage, seed: int) -> Numbers:
    judge_of(stage)  # no labels, no probe
    train, test, numbers = stage.dataset.train, stage.dataset.test, {}
    assert train.y is not None, "judged by labels"
    assert test.y is not None, "judged by labels"
    for model, run in MODELS.items():
        subject = stage.open(run, seed)
        codes, _ = subject.encode(subject.observed(train.x[:ROWS], seed))
        test_codes, _ = subject.encode(subject.observed(test.x, seed + 1))
        found = probe(codes, train.y[:ROWS], test_codes, test.y)
        numbers[_ACCURACY, model] = found.accuracy
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    vae, ae = found[_ACCURACY, VAE].mean, found[_ACCURACY, AE].mean
    wins = "the AE's WIN" if ae > vae else "the AE's do not win"
    return vae >= 0.95, f"{vae:.1%} from the VAE's means, {ae:.1%} from the AE's codes: {wins}."


CLAIM: Final = Claim(
    title="Features",
    says="The code is a good description: a linear classifier on it does well.",
    expects="At least 95% on MNIST from the VAE's means; the AE may tie or win, for nothing makes "
    "it forget.",
    measure=_measure,
    verdict=_verdict,
)
