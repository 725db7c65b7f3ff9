"""The input for measuring the claims: rows, finished runs and a classifier."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentd.training import checkpoint, data, networks, threads
from latentd.training.comparison.plan import Plan, sizes
from latentd.training.config import Config
from latentd.training.dataset import Dataset
from latentd.training.errors import TrainingError
from latentd.training.evaluation.classifier import Classifier, cache_folder, load_classifier
from latentd.training.evaluation.loaded_run import LoadedRun, open_run
from latentd.training.train import BEST, LAST, finished, train


@dataclass(frozen=True)
class TrainedRuns:
    """The finished runs of a plan."""

    plan: Plan
    sizes: tuple[int, ...]  # training rows, ascending
    dataset: Dataset  # grey, of the largest size; all runs have its test rows
    classifier: Classifier | None  # None: the data has no labels
    ood: Dataset | None  # grey: the second data set, if one was given
    threads: int  # CPU threads per operation, as measured in the runs' training

    def open(self, run: str, seed: int, rows: int | None = None, last: bool = False) -> LoadedRun:
        """Open a run's best weights, or its last. run: vae, ae, collapsing or ood."""
        folder = self.plan.folder(run, rows or self.sizes[-1], seed)
        return open_run(folder / (LAST if last else BEST), device=self.plan.config.device)


def prepare(plan: Plan) -> TrainedRuns:
    """Write the rows, then train the unfinished runs. Interrupted runs resume.

    Raises TrainingError if the data does not allow a comparison, or if `plan.out` holds runs with
    other settings.
    """
    source = data.load(_grey(plan.config))
    if source.columns:
        raise TrainingError(
            f"--data {plan.config.data}: compare measures pictures and vectors scaled to 0..1, and "
            "these are columns in units of their own. Train and evaluate both --model vae and "
            "--model ae instead."
        )
    ood = None
    if plan.ood_data is not None:
        ood = data.load(_grey(plan.config.with_data(plan.ood_data)))
        if ood.spec != source.spec:
            raise TrainingError(
                f"--ood-data {plan.ood_data} has {ood.spec} and --data {plan.config.data} "
                f"{source.spec}; they must match."
            )
    row_counts = sizes(len(source.train))
    for row_count in row_counts:
        _write_rows(plan, row_count, source, row_count)
    if ood is not None:
        _write_rows(plan, "ood", ood, row_counts[-1])
    runs = plan.runs(row_counts, source.spec.size)
    for number, (folder, config) in enumerate(runs.items(), 1):
        print(f"run {number} of {len(runs)}: {folder.name}", file=sys.stderr)
        _finish(folder, config)
    dataset = data.load(_grey(plan.config.with_data(f"npz:{plan.rows(row_counts[-1])}")))
    first = checkpoint.load(plan.folder("vae", row_counts[-1], 0) / LAST)
    count = threads.of_run(first.config.threads)
    classifier, y = None, dataset.train.y
    if y is not None and len(torch.unique(y)) > 1:
        with threads.using(count):
            classifier = load_classifier(dataset, plan.cache or cache_folder())
    return TrainedRuns(plan, row_counts, dataset, classifier, ood, count)


def _grey(config: Config) -> Config:
    """The config for the same rows before binarization, split by the first seed."""
    return dataclasses.replace(config, binarization="none", seed=0)


def _write_rows(plan: Plan, name: object, source: Dataset, rows: int) -> None:
    """Write an .npz whose split has `rows` training rows, or all rows if there are fewer."""
    path = plan.rows(name)
    most = round(rows / (1 - plan.config.val_fraction))
    arrays: dict[str, Any] = {
        "x_train": torch.cat((source.train.x, source.validation.x))[:most].numpy(),
        "x_test": source.test.x.numpy(),
    }
    train, validation, test = source.train.y, source.validation.y, source.test.y
    if train is not None and validation is not None and test is not None:
        arrays |= {"y_train": torch.cat((train, validation))[:most].numpy(), "y_test": test.numpy()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {plan.out} cannot be made: {error.strerror}.") from None
    temporary = path.with_name(f".{path.name}")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def _finish(folder: Path, config: Config) -> None:
    """Train the rest of a run. The run's lines go only into its own log."""
    saved = None
    if (folder / LAST).exists():
        saved = checkpoint.load(folder / LAST)
        decided = dataclasses.replace(
            config,
            device=saved.config.device,
            precision=saved.config.precision,
            threads=saved.config.threads,
            tracker=saved.config.tracker,
        )
        if networks.resolve_architecture(decided, saved.spec.shape) != saved.config:
            raise TrainingError(
                f"{folder} holds a run with other settings. Repeat those settings, or choose "
                "another --out."
            )
        if finished(saved.config, saved.history):
            return
        # An interrupted run keeps its kind of device unless --device names another.
        given = {name: getattr(config, name) for name in ("device", "precision", "threads")}
        given = {name: value for name, value in given.items() if value not in ("auto", 0)}
        config = dataclasses.replace(saved.config, **given, tracker=config.tracker)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(config, folder, saved)
