"""COMPARISON.md: every claim, our expectation, the measurements, and whether the claim holds."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from tqdm import tqdm

from latentd.training.comparison import (
    collapse,
    density,
    distribution,
    features,
    interpolation,
    latent,
    overfitting,
    sampling,
)
from latentd.training.comparison.hypothesis import Hypothesis, Key, Skipped, Spread, spread
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.config import Config, flag

HYPOTHESES: Final = tuple(
    module.HYPOTHESIS
    for module in (
        distribution,
        overfitting,
        latent,
        sampling,
        interpolation,
        collapse,
        density,
        features,
    )
)
MARKDOWN: Final = "COMPARISON.md"
JSON: Final = "comparison.json"
PICTURES: Final = "results"
_PICTURED: Final = {
    distribution.HYPOTHESIS.title: "one_x_many_z.png",
    latent.HYPOTHESIS.title: "latent.png",
    sampling.HYPOTHESIS.title: "samples.png",
    interpolation.HYPOTHESIS.title: "interpolation.png",
}


class Result(NamedTuple):
    """The result for a claim. holds: None if it was skipped."""

    hypothesis: Hypothesis
    numbers: Mapping[Key, Spread]
    holds: bool | None
    words: str

    @property
    def verdict(self) -> str:
        """holds | does not hold | skipped"""
        return {True: "holds", False: "does not hold", None: "skipped"}[self.holds]


def evaluate_all(runs: TrainedRuns) -> list[Result]:
    """Measure every claim for every seed."""
    results = []
    total = len(HYPOTHESES) * runs.plan.seeds
    with tqdm(total=total, desc="measuring", unit="claim", mininterval=0.5, disable=None) as bar:
        for hypothesis in HYPOTHESES:
            results.append(_evaluate(hypothesis, runs))
            bar.update(runs.plan.seeds)
    return results


def _evaluate(hypothesis: Hypothesis, runs: TrainedRuns) -> Result:
    try:
        numbers = spread([hypothesis.measure(runs, seed) for seed in range(runs.plan.seeds)])
    except Skipped as why:
        return Result(hypothesis, {}, None, str(why))
    return Result(hypothesis, numbers, *hypothesis.verdict(numbers))


def write(runs: TrainedRuns, results: list[Result]) -> Path:
    """Write COMPARISON.md and comparison.json into the plan's folder. Returns the first path."""
    raw = {
        "settings": dataclasses.asdict(runs.plan.config),
        "ood_data": runs.plan.ood_data,
        "seeds": runs.plan.seeds,
        "training_rows": runs.sizes,
        "claims": [
            {
                "title": result.hypothesis.title,
                "statement": result.hypothesis.statement,
                "expected": result.hypothesis.expectation,
                "verdict": result.verdict,
                "words": result.words,
                "measured": [
                    {"what": what, "of": model} | _plain(found)
                    for (what, model), found in result.numbers.items()
                ],
            }
            for result in results
        ],
    }
    (runs.plan.out / JSON).write_text(json.dumps(raw, indent=2, allow_nan=False) + "\n")
    path = runs.plan.out / MARKDOWN
    path.write_text("\n".join((*_head(runs), *_summary(results), *_details(results))) + "\n")
    return path


def _head(runs: TrainedRuns) -> Iterator[str]:
    plan = runs.plan
    rows = ", ".join(f"{rows:,}" for rows in runs.sizes)
    labels = "" if runs.classifier is None else _accuracy(runs)
    yield "# Textbook claims, measured"
    yield ""
    yield (
        "A variational autoencoder (VAE) and a plain autoencoder (AE): same net, same rows, "
        f"same number of steps, {plan.seeds} seeds each; numbers are means ± standard deviations "
        "over the seeds. We wrote down what we expected of each claim before we measured it."
    )
    yield ""
    yield f"- Data: {plan.config.data}, {len(runs.dataset.test):,} test rows; training rows {rows}"
    yield f"- Settings other than the defaults: {_settings(plan.config)}"
    yield (
        "- Best epoch by validation; overfitting is measured at the end of the budget, with as "
        f"many steps on fewer rows.{labels}"
    )
    if plan.config.binarization == "dynamic":
        yield "- Pixels are redrawn in each pass, which also keeps the AE from overfitting."
    yield f"- PyTorch {torch.__version__}, Python {platform.python_version()}"
    yield ""


def _plain(found: Spread) -> dict[str, float | None]:
    """Replace NaN by null, because JSON has no NaN."""
    missing = math.isnan(found.mean)
    return {"mean": None, "sd": None} if missing else {"mean": found.mean, "sd": found.sd}


def _accuracy(runs: TrainedRuns) -> str:
    assert runs.classifier is not None, "no classifier"
    assert runs.dataset.test.y is not None, "no labels"
    right = runs.classifier.accuracy(runs.dataset.test.x, runs.dataset.test.y)
    return f" A classifier trained here labels the rows; it is right on {right:.1%} of test rows."


def _settings(config: Config) -> str:
    given: Iterator[tuple[str, Any, Any]] = (
        (field.name, getattr(config, field.name), field.default)
        for field in dataclasses.fields(config)
    )
    shown = [
        f"`{flag(name)} {value}`"
        for name, value, default in given
        if value != default and name not in ("data", "device", "checkpoint_seconds")
    ]
    return ", ".join(shown) or "none"


def _summary(results: list[Result]) -> Iterator[str]:
    yield "| claim | expected | measured | verdict |"
    yield "|---|---|---|---|"
    for result in results:
        cells = (
            result.hypothesis.title,
            result.hypothesis.expectation,
            result.words,
            f"**{result.verdict}**",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _details(results: list[Result]) -> Iterator[str]:
    for result in results:
        yield f"## {result.hypothesis.title}: {result.verdict}"
        yield ""
        yield f"*{result.hypothesis.statement}*"
        yield ""
        if not result.numbers:
            yield result.words
            yield ""
        else:
            yield from _table(result.numbers)
        picture = _PICTURED.get(result.hypothesis.title)
        if picture and result.numbers:
            yield f"![{result.hypothesis.title}]({PICTURES}/{picture})"
            yield ""


def _table(numbers: Mapping[Key, Spread]) -> Iterator[str]:
    models = list(dict.fromkeys(model for _, model in numbers))
    yield f"| | {' | '.join(models)} |"
    yield "|---" * (len(models) + 1) + "|"
    for what in dict.fromkeys(what for what, _ in numbers):
        cells = (str(numbers.get((what, model), "")) for model in models)
        yield f"| {what} | {' | '.join(cells)} |"
    yield ""
