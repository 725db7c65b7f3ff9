"""All results for a checkpoint as one plain dictionary, the content of evaluation.json."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from latentd.training.dataset import Rows
from latentd.training.errors import TrainingError
from latentd.training.evaluation import samples
from latentd.training.evaluation.active_units import ACTIVE, measure_units, text_collapse, verdict
from latentd.training.evaluation.aggregate_posterior import measure_aggregate
from latentd.training.evaluation.classifier import cache_folder, load_classifier
from latentd.training.evaluation.columns import measure_columns
from latentd.training.evaluation.frechet import frechet
from latentd.training.evaluation.likelihood import LikelihoodEstimate, estimate_likelihood
from latentd.training.evaluation.linear_probe import ROWS as PROBE_ROWS
from latentd.training.evaluation.linear_probe import linear_probe
from latentd.training.evaluation.loaded_run import LoadedRun
from latentd.training.evaluation.texts import likelihoods, measure_texts
from latentd.training.model import to_unit

SAMPLES: Final = 5000  # as papers report
TEXT_SAMPLES: Final = 500  # as papers on text report

GAP_SAMPLES: Final = 100
"""Draws per row when training rows are compared with test rows. The number does not change -ELBO
and hardly changes the NLL's gap."""


@dataclass(frozen=True)
class Options:
    """The options of an evaluation."""

    samples: int | None = None  # importance-weighted draws per row; None: 5000, of text 500
    rows: int | None = None  # test rows; None: all
    seed: int = 0  # decides every draw
    cache: Path | None = None  # folder of the classifier; None: cache_folder()


def evaluate(loaded: LoadedRun, options: Options) -> dict[str, Any]:
    """The results as plain data for JSON. If a value cannot be measured, its key holds the reason.

    Raises TrainingError for a single row, and RunFailed if the model's outputs are not finite.
    """
    seed, test, train = options.seed, loaded.dataset.test, loaded.dataset.train
    count = min(options.rows or len(test), len(test))
    if count < 2:
        raise TrainingError("1 test row has no spread to measure; evaluate two rows or more.")
    meaning = loaded.meaning()
    target = loaded.targets(test.x[:count], seed)
    mean, log_var = loaded.encode(target)
    result: dict[str, Any] = {
        "checkpoint": loaded.path.name,
        "weights": loaded.weights,
        "epoch": len(loaded.saved.history),
        "data": loaded.source,
        "own_data": loaded.own_data,
        "split": loaded.dataset.summary(),
        "part": "test",
        "rows": count,
        "values": loaded.values,
        "likelihood": meaning.description,
        "unit": "nats per example",
        "seed": seed,
    }
    is_text = loaded.dataset.text
    if is_text:
        result["texts"] = measure_texts(loaded, mean, seed)
    if meaning.kind != "nothing":
        draws = options.samples or (TEXT_SAMPLES if is_text else SAMPLES)
        estimate = estimate_likelihood(loaded.model, target, draws, seed, label="NLL of test rows")
        train_target = loaded.targets(train.x[: min(count, len(train))], seed)
        result |= {"bound": _bound(estimate), "gap": _gap(loaded, target, train_target, seed)}
        if is_text:
            result["texts"] |= likelihoods(result["bound"], result["texts"])
    if loaded.dataset.columns:
        result["columns"] = measure_columns(loaded, target, mean, seed)
    elif not is_text:
        result["reconstruction"] = _reconstruction(loaded, target, mean)
    if loaded.saved.config.model == "ae":
        result["latent"] = {"size": mean.shape[1], "verdict": "a point for a code: no KL"}
        active = torch.ones(mean.shape[1], dtype=torch.bool)
        spread = measure_aggregate(mean, log_var, active, seed)
    else:
        found = measure_units(mean, log_var)
        spread = measure_aggregate(mean, log_var, found.active, seed)
        collapse = None
        if is_text:
            texts = result["texts"]
            distinct = texts["distinct_greedy_decodes"] / texts["decodes"]
            collapse = text_collapse(found, spread.mutual_information, distinct)
        result["latent"] = {
            "size": mean.shape[1],
            "active_units": found.count,
            "threshold": ACTIVE,
            "collapsed": found.collapsed or collapse is not None,
            "verdict": collapse or verdict(found),
            "kl": found.kl.tolist(),
            "variance_of_mean": found.variance.tolist(),
        }
    result["aggregate"] = dataclasses.asdict(spread) | {"verdict": spread.words}
    result |= _measure_with_labels(loaded, mean, test, train, options)
    plain: dict[str, Any] = _finite(result)
    return plain


def _bound(estimate: LikelihoodEstimate) -> dict[str, Any]:
    return {
        "samples": estimate.samples,
        "rows": len(estimate),
        **_mean("negative_elbo", estimate.negative_elbo),
        "distortion": float(estimate.distortion.mean()),
        "rate": float(estimate.rate.mean()),
        **_mean("nll", estimate.nll),
        "effective_samples": float(estimate.effective.median()),
    }


def _gap(loaded: LoadedRun, target: Tensor, train_target: Tensor, seed: int) -> dict[str, Any]:
    """Test results minus training results, both with GAP_SAMPLES draws."""
    test, train = (
        estimate_likelihood(loaded.model, x, GAP_SAMPLES, seed, label=f"{name} rows for the gap")
        for name, x in (("test", target), ("training", train_target))
    )
    gaps: dict[str, Any] = {
        "samples": GAP_SAMPLES,
        "test_rows": len(test),
        "train_rows": len(train),
    }
    for name in ("negative_elbo", "nll"):
        a, b = getattr(test, name), getattr(train, name)
        gaps[name] = float(a.mean() - b.mean())
        gaps[f"{name}_standard_error"] = math.sqrt(a.var() / len(a) + b.var() / len(b))
    return gaps


def _mean(name: str, rows: Tensor) -> dict[str, float]:
    error = math.sqrt(rows.var() / len(rows))
    return {name: float(rows.mean()), f"{name}_standard_error": error}


def _reconstruction(loaded: LoadedRun, target: Tensor, mean: Tensor) -> dict[str, Any]:
    """Reconstruction through the mean: squared error per pixel in [0, 1], for any two models."""
    again = to_unit(samples.decode(loaded.model, mean))
    return {"mean_squared_error": float((again - target.cpu()).square().mean())}


def _measure_with_labels(
    loaded: LoadedRun, mean: Tensor, test: Rows, train: Rows, options: Options
) -> dict[str, Any]:
    if test.y is None or train.y is None:
        return _not_measured(
            "the data have no labels" if test.y is train.y else "only some rows have labels"
        )
    if len(torch.unique(train.y)) < 2:
        return _not_measured("the labels name one class only")
    codes, _ = loaded.encode(loaded.targets(train.x[:PROBE_ROWS], options.seed))
    found = linear_probe(codes, train.y[:PROBE_ROWS], mean, test.y[: len(mean)])
    if loaded.dataset.columns:
        return {
            "probe": dataclasses.asdict(found),
            "frechet": {"missing": "it is of rows scaled to 0..1; see the columns"},
        }
    grey = loaded.grey()
    classifier = load_classifier(grey, options.cache or cache_folder())
    real = classifier.features(grey.test.x)
    drawn = {
        "prior": samples.prior(samples.COUNT, mean.shape[1], options.seed),
        "fitted": samples.fitted(codes, samples.COUNT, options.seed),
    }
    distances = {
        name: frechet(classifier.features(samples.decode(loaded.model, z)), real)
        for name, z in drawn.items()
    }
    return {
        "probe": dataclasses.asdict(found),
        "frechet": {
            **distances,
            "training_rows": frechet(classifier.features(grey.train.x[: samples.COUNT]), real),
            "samples": samples.COUNT,
            "test_rows": len(real),
            "classifier_accuracy": classifier.accuracy(grey.test.x, test.y),
        },
    }


def _not_measured(why: str) -> dict[str, Any]:
    return {"probe": {"missing": why}, "frechet": {"missing": f"{why}, so no classifier"}}


def _finite(value: Any) -> Any:
    """Replace values that are not finite by null, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
