"""`latentd compare-runs`: what differs between runs, in settings, data, environment and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from latentd.training.config import Config
from latentd.training.files import printable
from latentd.training.runs.aligned_text import in_columns, number
from latentd.training.runs.recorded_run import RecordedRun

Section = dict[str, list[Any]]  # the name of a value -> the value of each run

_MARKS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST: Final = len(_MARKS)
_MEASURED: Final = {
    "validation_elbo": "validation ELBO",
    "validation_distortion": "validation distortion",
    "validation_rate": "validation rate (KL)",
    "test_elbo": "test ELBO",
    "test_distortion": "test distortion",
    "test_rate": "test rate (KL)",
    "nll": "NLL",
    "frechet_distance": "Frechet distance",
}
_COUNTED: Final = {
    "active_units": "active units",
    "parameters": "parameters",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "skipped_steps": "skipped steps",
    "seconds": "seconds",
    "seconds_an_epoch": "seconds an epoch",
}


def settings(runs: Sequence[RecordedRun]) -> Section:
    """Every flag of the trainings. A run of an older release has its defaults for newer flags."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return _side_by_side([defaults | run.settings for run in runs])


def data(runs: Sequence[RecordedRun]) -> Section:
    """The rows of the runs and their split."""
    return _side_by_side([run.part("split") for run in runs])


def environment(runs: Sequence[RecordedRun]) -> Section:
    """Where the runs ran, and in which versions. An older release recorded less."""
    return _side_by_side(
        [
            {
                "device": run.log.header.get("device"),
                "processes": run.log.header.get("processes"),
                "CPUs": run.part("threads").get("cpus"),
                **run.part("versions"),
            }
            for run in runs
        ]
    )


def metrics(runs: Sequence[RecordedRun]) -> Section:
    """The metrics of the runs."""
    return _side_by_side([_metrics(run) for run in runs])


def differing(section: Section) -> Section:
    """The part in which the runs differ."""
    return {
        name: values
        for name, values in section.items()
        if any(value != values[0] for value in values)
    }


def incomparable(runs: Sequence[RecordedRun]) -> str:
    """Why metrics in nats must not be compared. Empty: they may."""
    kinds = [run.log.header.get("elbo") for run in runs]
    if any(kind != kinds[0] for kind in kinds):
        each = "; ".join(f"{mark}: {kind}" for mark, kind in zip(_MARKS, kinds, strict=False))
        return f"Nats of different kinds ({each})."
    if differing({"data": [run.settings.get("data") for run in runs]}):
        return "Nats of different data."
    return ""


def text(runs: Sequence[RecordedRun]) -> str:
    """The comparison for a terminal. Each run has a letter; differences are from A."""
    marks = _MARKS[: len(runs)]
    parts = ["\n".join(f"{m}  {printable(run.folder)}" for m, run in zip(marks, runs, strict=True))]
    for title, section in (
        ("settings", settings(runs)),
        ("data", data(runs)),
        ("environment", environment(runs)),
    ):
        found = differing(section)
        same = len(section) - len(found)
        if found:
            rows = [(name, *(_shown(name, value) for value in found[name])) for name in found]
            remark = f" ({same} more are the same)" if same else ""
            parts.append(in_columns([(f"{title}{remark}", *marks), *rows], range(len(runs) + 1)))
        else:
            parts.append(f"{title}: the same")
    why = incomparable(runs)
    parts.append(_metrics_text(runs, marks, deltas=not why))
    if why:
        parts.append(f"{why} Their differences mean nothing and are left out.")
    elif differing({"digest": data(runs).get("digest", [None])}):
        parts.append("The runs have different rows or splits: differences are partly theirs.")
    return "\n\n".join(parts)


def record(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """The comparison as plain data for JSON: in each part, only what differs."""
    return {
        "runs": [printable(run.folder) for run in runs],
        "states": [run.state for run in runs],
        "settings": differing(settings(runs)),
        "data": differing(data(runs)),
        "environment": differing(environment(runs)),
        "metrics": metrics(runs),
        "incomparable": incomparable(runs) or None,
    }


def _metrics_text(runs: Sequence[RecordedRun], marks: str, deltas: bool) -> str:
    head = ["metrics", marks[0]]
    for mark in marks[1:]:
        head += [mark, f"{mark} - {marks[0]}"]
    rows, section = [head], metrics(runs)
    for names, comparable in ((_MEASURED, deltas), (_COUNTED, True)):
        for name, title in names.items():
            first, *others = section[name]
            if all(value is None for value in (first, *others)):
                continue
            row = [title, number(first)]
            for value in others:
                known = comparable and value is not None and first is not None
                row += [number(value), _signed(value - first) if known else ""]
            rows.append(row)
    return in_columns(rows)


def _signed(delta: float) -> str:
    text = number(delta)
    return text if delta <= 0 else f"+{text}"


def _metrics(run: RecordedRun) -> dict[str, Any]:
    found: dict[str, Any] = run.metrics()
    seconds, epochs = found["seconds"], found["epochs"]
    return found | {"seconds_an_epoch": seconds / epochs if seconds and epochs else None}


def _side_by_side(records: Sequence[dict[str, Any]]) -> Section:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _shown(name: str, value: Any) -> str:
    """A value in a cell. A digest is known by its beginning."""
    return "-" if value is None else str(value)[: 12 if name == "digest" else None]
