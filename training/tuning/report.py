"""What a search has found: a table, trials.csv, and the command that trains the best trial."""

from __future__ import annotations

import csv
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial, TrialState

from latentd.training.config import flag
from latentd.training.config_flags import to_flags
from latentd.training.evaluation.active_units import REMEDY
from latentd.training.tuning import figure
from latentd.training.tuning.study import TrialStudy, best_of, collapsed, elbo, measured

FILE: Final = "trials.csv"
ALL_COLLAPSED: Final = (
    "The posterior of every trial collapsed: samples do not depend on z, so none was chosen. "
    f"Try: {REMEDY}."
)
_ROWS: Final = 15  # of the table; trials.csv has all
_MEASURED: Final = ("rate", "active_units", "best_epoch", "epochs", "seconds")
_STATES: Final = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


def format_line(study: TrialStudy, trials: Sequence[FrozenTrial], number: int) -> str:
    """A line about the trial of this number."""
    (found,) = (trial for trial in trials if trial.number == number)
    settings = ", ".join(f"{name} {value}" for name, value in _settings(study, found).items())
    if found.state == TrialState.FAIL:
        return f"trial {number} failed: {found.user_attrs.get('error')} ({settings})"
    best = best_of(trials)
    beside = f"trial {best.number}, {elbo(best):.3f}" if best else "none, all have collapsed"
    return (
        f"trial {number} {_state(found)} after epoch {measured(found)['epochs']}: ELBO "
        f"{elbo(found):.3f} (best: {beside}); {settings}"
    )


def format_report(study: TrialStudy, trials: Sequence[FrozenTrial]) -> str:
    """The table and what to do next."""
    return "\n".join((*_table(study, trials), "", *_result(study, trials)))


def write(study: TrialStudy, trials: Sequence[FrozenTrial]) -> None:
    """Write every trial, in order, into trials.csv."""
    path = study.out / FILE
    rows = [_record(study, trial) for trial in trials]
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _record(study: TrialStudy, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": _state(trial),
        "validation_elbo": elbo(trial),
        **{name: measured(trial).get(name) for name in _MEASURED},
        **_settings(study, trial),
        "error": trial.user_attrs.get("error"),
    }


def _table(study: TrialStudy, trials: Sequence[FrozenTrial]) -> Iterator[str]:
    """The best trials first, aligned."""
    ranked = sorted(
        trials, key=lambda trial: (elbo(trial) is None, -(elbo(trial) or 0), trial.number)
    )
    names = [flag(name).removeprefix("--") for name in study.space.distributions]
    head = ["trial", "ELBO", "KL", "active", "epochs", "seconds", *names, "state"]
    rows = [[*map(_cell, _cells(study, trial))] for trial in ranked[:_ROWS]]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        *cells, state = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join((*cells, state.strip()))
    if len(trials) > _ROWS:
        yield f"and {len(trials) - _ROWS} more: {study.out / FILE}"


def _cells(study: TrialStudy, trial: FrozenTrial) -> Iterator[Any]:
    found = measured(trial)
    yield trial.number
    yield None if (value := elbo(trial)) is None else f"{value:.3f}"
    yield None if (rate := found.get("rate")) is None else f"{rate:.2f}"
    yield from (found.get(name) for name in ("active_units", "epochs", "seconds"))
    yield from _settings(study, trial).values()
    yield _state(trial)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _settings(study: TrialStudy, trial: FrozenTrial) -> dict[str, Any]:
    """The searched settings of a trial by their names on the command line."""
    config = study.settings(trial)
    return {
        flag(name).removeprefix("--"): getattr(config, name) for name in study.space.distributions
    }


def _state(trial: FrozenTrial) -> str:
    return _STATES[trial.state] + ", collapsed" * collapsed(trial)


def _result(study: TrialStudy, trials: Sequence[FrozenTrial]) -> Iterator[str]:
    best, highest = best_of(trials), best_of(trials, active=False)
    if best is None:
        if highest is None:
            yield "No trial has a validation ELBO yet. The same command goes on."
        return
    yield _line("best", f"trial {best.number}: ELBO {elbo(best):.3f} nats a validation row")
    if study.space.start and best.number != 0 and (first := elbo(trials[0])) is not None:
        yield _line("", f"trial 0, which searched nothing: {first:.3f}")
    if highest and highest.number != best.number:
        yield _line("", f"trial {highest.number}: {elbo(highest):.3f}, not chosen: it collapsed")
    if best.state == TrialState.RUNNING:
        yield _line("", "it is unfinished: the same command goes on with it")
    folder = study.folder(best.number)
    yield _line("its run", f"{folder} (`latentd evaluate {shlex.quote(str(folder))}`)")
    yield _line("train again", command(study, best))
    yield _line("written", f"{study.out / FILE}, {study.out / figure.FILE}")


def command(study: TrialStudy, trial: FrozenTrial) -> str:
    """The command that trains a trial's model from the start, with the same result."""
    config = dataclasses.replace(study.settings(trial), threads=measured(trial)["threads"])
    words = ["latentd", "train", *to_flags(config), "--out", f"{study.out}-best"]
    return shlex.join(words)


def _line(name: str, text: str) -> str:
    return f"{name:<13}{text}"
