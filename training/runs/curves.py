"""The curves of several runs in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # neither a display nor pyplot's global state

from latentd.training.files import printable
from latentd.training.runs.recorded_run import RecordedRun


def draw(path: Path, runs: Sequence[RecordedRun]) -> None:
    """Draw the ELBO over epochs and over seconds, and the rate. Dotted: training rows."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    by_epoch, by_time, rate = figure.subplots(1, 3)
    seen: list[float] = []
    for number, run in enumerate(runs):
        color, name = f"C{number % 10}", printable(run.folder)
        epochs = [line["epoch"] for line in run.log.epochs]
        seconds = list(itertools.accumulate(line.get("seconds", 0.0) for line in run.log.epochs))
        for axes, places, term in (
            (by_epoch, epochs, "elbo"),
            (by_time, seconds, "elbo"),
            (rate, epochs, "rate"),
        ):
            for part, style in (("validation", "-"), ("train", ":")):
                points = [
                    (place, line[f"{part}_{term}"])
                    for place, line in zip(places, run.log.epochs, strict=True)
                    if f"{part}_{term}" in line  # not every epoch is validated
                ]
                label = name if part == "validation" else None
                axes.plot(
                    *zip(*points, strict=True) if points else ((), ()), style, c=color, label=label
                )
                if term == "elbo":
                    seen += (value for _, value in points)
    for axes in (by_epoch, by_time):
        if len(seen) > 1:  # the first epochs are so poor that they would flatten the rest
            low, high = np.quantile(seen, 0.1), max(seen)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    by_epoch.set(title="ELBO (dotted: training rows)", xlabel="epoch", ylabel="nats per example")
    by_time.set(title="ELBO", xlabel="seconds of training")
    rate.set(title="rate (KL)", xlabel="epoch")
    by_epoch.legend()
    figure.savefig(path, dpi=100)
