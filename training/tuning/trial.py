"""One trial: a training run like any other, in this process, on rows that are loaded once."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import optuna
import torch
from optuna.trial import TrialState

from latentd.training import checkpoint, threads
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.dataset import Dataset
from latentd.training.errors import TrainingError, is_out_of_memory
from latentd.training.evaluation.active_units import ACTIVE, LatentUnits, measure_units
from latentd.training.evaluation.loaded_run import LoadedRun
from latentd.training.evaluation.results_file import weights_digest
from latentd.training.readers.picture_cache import FOLDER as PICTURES
from latentd.training.signals import Stopped, StopRequest
from latentd.training.train import BEST, LAST, train
from latentd.training.tuning.study import MEASURED, Claimed, TrialStudy

_COLLAPSE: Final = "posterior collapse"  # Optuna's name for what a good trial must not have
_RUN: Final = ("device", "precision", "threads")  # a continued run keeps its own
_ROWS: Final = 1000  # of the validation rows: enough to see whether a latent is active

Line = dict[str, Any]


def run(
    study: TrialStudy,
    claimed: Claimed,
    dataset: Dataset,
    stop: StopRequest,
    after_step: Callable[[], None],
    after_epoch: Callable[[Line], None],
) -> None:
    """Train the trial, or the rest of it, and record its end. A trial that fails is recorded too.

    Raises Stopped after the trial's state is saved, if `stop` asks for it.
    """
    try:
        state = _train(study, claimed, dataset, stop, after_step, after_epoch)
        value = _measure(claimed, dataset, whole=state == TrialState.COMPLETE)
    except Stopped:
        if (claimed.folder / BEST).exists():
            _measure(claimed, dataset, whole=False)
        study.release(claimed)
        raise
    except (TrainingError, MemoryError, RuntimeError) as error:
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        why = str(error) if isinstance(error, TrainingError) else "out of memory"
        claimed.trial.set_user_attr("error", why)
        study.finish(claimed, TrialState.FAIL)
    else:
        study.finish(claimed, state, value if state == TrialState.COMPLETE else None)
    _free_memory(study.config)


def _train(
    study: TrialStudy,
    claimed: Claimed,
    dataset: Dataset,
    stop: StopRequest,
    after_step: Callable[[], None],
    after_epoch: Callable[[Line], None],
) -> TrialState:
    trial, folder = claimed.trial, claimed.folder
    config, saved = study.settings(trial), None
    if (study.out / PICTURES).exists() and not (folder / PICTURES).exists():
        (folder / PICTURES).symlink_to(os.path.relpath(study.out / PICTURES, folder))

    def report(line: Line) -> None:
        if "validation_elbo" in line and line["epoch"] not in claimed.reported:
            trial.report(line["validation_elbo"], line["epoch"])

    def report_and_judge(line: Line) -> None:
        report(line)
        after_epoch(line)
        if "validation_elbo" in line and trial.should_prune():
            raise optuna.TrialPruned

    if (folder / LAST).exists():
        saved = checkpoint.load(folder / LAST)
        config = _continued(config, saved.config)
        for line in saved.history:  # a kill may come between an epoch's checkpoint and its report
            report(line)
    with _quiet():
        try:
            train(
                config,
                folder,
                saved,
                dataset=dataset,
                stop=stop,
                after_step=after_step,
                after_epoch=report_and_judge,
                evaluate_best=False,
            )
        except optuna.TrialPruned:
            return TrialState.PRUNED
    return TrialState.COMPLETE


def complete(folder: Path, dataset: Dataset) -> None:
    """Draw the pictures of a finished run, and evaluate it on the test rows."""
    saved = checkpoint.load(folder / LAST)
    with _quiet():
        train(saved.config, folder, saved, dataset=dataset)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A run's lines go only into its own log."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _continued(config: Config, saved: Config) -> Config:
    """The saved config, with the device and the threads that flags name."""
    given = {name: getattr(config, name) for name in _RUN}
    given = {name: value for name, value in given.items() if value not in ("auto", 0)}
    return dataclasses.replace(saved, **given, tracker=config.tracker)


def _measure(claimed: Claimed, dataset: Dataset, whole: bool) -> float:
    """Record what the best weights are like. Returns their validation ELBO.

    whole: whether the run is over, so that a collapsed posterior stays so
    """
    trial, path = claimed.trial, claimed.folder / BEST
    best, last = checkpoint.load(path), checkpoint.load(claimed.folder / LAST)
    units = _units(path, best, dataset)
    line = best.history[-1]
    measured = {
        "rate": line["validation_rate"],
        "active_units": units.count,
        "best_epoch": line["epoch"],
        "epochs": len(last.history),
        "seconds": round(sum(line["seconds"] for line in last.history), 1),
        "threads": last.config.threads,
    }
    trial.set_user_attr(MEASURED, measured)
    if whole:
        trial.set_constraint(_COLLAPSE, ACTIVE - float(units.variance.max()))
    return float(line["validation_elbo"])


def _units(path: Path, best: Checkpoint, dataset: Dataset) -> LatentUnits:
    """What the validation rows' latents are like."""
    device = torch.device(best.config.device)
    model = best.model().to(device)
    run = LoadedRun(path, best, best.config.data, model, dataset, device, weights_digest(model))
    rows = dataset.validation if len(dataset.validation) > 1 else dataset.train
    with threads.using(threads.of_run(best.config.threads)):
        return measure_units(*run.encode(run.targets(rows.x[:_ROWS], best.config.seed)))


def _free_memory(config: Config) -> None:
    """Leave nothing of a trial to the next one."""
    gc.collect()
    if config.compile:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
