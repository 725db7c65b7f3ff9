"""`latentd runs`: a table of all runs below a folder, those of the same data together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from latentd.training.errors import TrainingError
from latentd.training.files import printable
from latentd.training.runs import recorded_run
from latentd.training.runs.aligned_text import in_columns, number
from latentd.training.runs.recorded_run import RecordedRun

_HEAD: Final = (
    *("run", "state", "net", "latents", "parameters", "epochs"),
    *("validation ELBO", "at", "test ELBO", "NLL", "seconds"),
)
_LEFT: Final = (0, 1, 2, 3)  # the columns that are not numbers


def _last_if_missing(name: str, sign: int) -> Callable[[RecordedRun], Any]:
    def key(run: RecordedRun) -> float:
        value = run.metrics()[name]
        return math.inf if value is None else sign * value

    return key


SORTS: Final[dict[str, Callable[[RecordedRun], Any]]] = {
    "elbo": _last_if_missing("validation_elbo", -1),
    "test": _last_if_missing("test_elbo", -1),
    "nll": _last_if_missing("nll", 1),
    "name": lambda run: run.folder,
    "newest": lambda run: -run.written,
    "parameters": _last_if_missing("parameters", 1),
    "seconds": _last_if_missing("seconds", 1),
}
"""The orders of --sort."""


def collect(root: Path, sort: str) -> list[RecordedRun]:
    """The runs below `root` in an order. Raises TrainingError if there are none."""
    if not root.is_dir():
        raise TrainingError(f"{printable(root)} is not a folder; name the one above your runs.")
    runs = [recorded_run.read(folder) for folder in recorded_run.find(root)]
    if not runs:
        raise TrainingError(
            f"{printable(root)} holds no run. `latentd train --out {printable(root)}/NAME` "
            "writes one."
        )
    return sorted(runs, key=SORTS[sort])


def table(runs: Sequence[RecordedRun]) -> str:
    """The runs as text: a table for each kind of data, and what is wrong with their files."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        if run.log.header:
            groups.setdefault(_kind(run), []).append(run)
    rows = [_HEAD, *(_row(run) for group in groups.values() for run in group)]
    head, *lines = in_columns(rows, _LEFT).splitlines()  # all tables have the same widths
    parts, at = [], 0
    for kind, group in groups.items():
        parts.append("\n".join((kind, head, *lines[at : at + len(group)])))
        at += len(group)
    faults = [f"{printable(run.folder)}: {fault}" for run in runs for fault in run.faults]
    if faults:
        parts.append("\n".join(("not usable:", *faults)))
    return "\n\n".join(parts)


def record(run: RecordedRun) -> dict[str, Any]:
    """The run as plain data for JSON."""
    return {
        "run": printable(run.folder),
        "state": run.state,
        "faults": list(run.faults),
        "data": run.settings.get("data"),
        "elbo": run.log.header.get("elbo"),
        **run.metrics(),
        "split": run.log.header.get("split"),
        "settings": run.settings,
    }


def net(settings: dict[str, Any]) -> str:
    """The net in short: 'mlp 256x2'."""
    size = [str(settings[name]) for name in ("hidden_size", "depth") if settings.get(name)]
    parts = ["ae"] if settings.get("model") == "ae" else []
    return " ".join((*parts, str(settings.get("architecture", "-")), "x".join(size))).strip()


def latents(settings: dict[str, Any]) -> str:
    """The size of z in short."""
    size = str(settings.get("latent_size", "-"))
    return f"{size} channels" if settings.get("latents") == "spatial" else size


def _kind(run: RecordedRun) -> str:
    """What the metrics of two runs must have in common before they are compared."""
    return f"{run.settings.get('data', '-')}: {run.log.header.get('elbo', '-')}"


def _row(run: RecordedRun) -> tuple[str, ...]:
    found = run.metrics()
    return (
        printable(run.folder),
        run.state,
        net(run.settings),
        latents(run.settings),
        number(found["parameters"]),
        f"{number(found['epochs'])}/{number(found['epochs_asked'])}",
        number(found["validation_elbo"]),
        number(found["best_epoch"]),
        number(found["test_elbo"]),
        nll(run),
        number(found["seconds"], 0),
    )


def nll(run: RecordedRun) -> str:
    """The NLL with its number of draws, and of rows if they are not all test rows."""
    found = run.metrics()
    if found["nll"] is None:
        return "-"
    rows = found["nll_rows"]
    some = "" if rows == run.part("split").get("test") else f", {number(rows)} rows"
    return f"{found['nll']:.2f} (S {number(found['nll_samples'])}{some})"
