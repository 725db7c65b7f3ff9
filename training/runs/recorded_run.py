"""A run as its folder tells it: log.jsonl and evaluation.json."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from latentd.training import run_log
from latentd.training.errors import TrainingError
from latentd.training.run_log import RunLog

FINISHED: Final = "finished"
RUNNING: Final = "running"
STOPPED: Final = "stopped"
BROKEN: Final = "broken"
_PROBES: Final = 3  # of the lock: a reader of the log beside this one holds it for an instant


@dataclass(frozen=True)
class RecordedRun:
    """What a run's folder says, as far as it can be read."""

    folder: Path
    log: RunLog
    running: bool
    evaluation: dict[str, Any]  # {}: not evaluated
    faults: tuple[str, ...]  # what cannot be read or used, in words
    written: float  # when the log was last written, seconds since 1970

    @property
    def state(self) -> str:
        """finished, running, stopped, or broken: its log cannot be read to the end."""
        if self.log.fault:
            return BROKEN
        if self.running:
            return RUNNING
        return FINISHED if self.log.result else STOPPED

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of the training, by their names in Config."""
        return self.part("run")

    def part(self, name: str) -> dict[str, Any]:
        """A part of the log's header. {}: an older release did not record it."""
        return _part(self.log.header, name)

    @property
    def best(self) -> dict[str, Any]:
        """The line of the epoch with the best validation ELBO. {}: none was validated."""
        validated = (line for line in self.log.epochs if "validation_elbo" in line)
        return max(validated, key=lambda line: float(line["validation_elbo"]), default={})

    def metrics(self) -> dict[str, float | None]:
        """The metrics of the run. None: not measured."""
        result, best, bound = self.log.result, self.best, _part(self.evaluation, "bound")
        return {
            "parameters": self.log.header.get("parameters"),
            "epochs": len(self.log.epochs),
            "epochs_asked": self.settings.get("epochs"),
            "best_epoch": best.get("epoch"),
            **{
                f"validation_{term}": best.get(f"validation_{term}")
                for term in ("elbo", "distortion", "rate")
            },
            **{
                f"test_{term}": result.get(f"test_{term}")
                for term in ("elbo", "distortion", "rate")
            },
            "nll": bound.get("nll"),
            "nll_samples": bound.get("samples"),
            "nll_rows": self.evaluation.get("rows") if bound else None,
            "active_units": _part(self.evaluation, "latent").get("active_units"),
            "frechet_distance": _part(self.evaluation, "frechet").get("prior"),
            "skipped_steps": self._sum("skipped_steps"),
            "seconds": self._sum("seconds"),
        }

    def _sum(self, name: str) -> float | None:
        values = [line[name] for line in self.log.epochs if name in line]
        return sum(values) if values else None


def read(folder: Path) -> RecordedRun:
    """Read a run's folder. Raises TrainingError if it has no log."""
    path = folder / run_log.FILE
    try:
        log = run_log.read(path)
        written = path.stat().st_mtime
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None
    faults = [f"{run_log.FILE}: {log.fault}"] if log.fault else []
    run = RecordedRun(folder, log, _is_locked(path), {}, (), written)
    evaluation, fault = _evaluation(run)
    if fault:
        faults.append(f"{run_log.EVALUATION}: {fault}")
    return RecordedRun(folder, log, run.running, evaluation, tuple(faults), written)


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def find(root: Path) -> Iterator[Path]:
    """The folders below `root`, and itself, that hold a run, in the order of their names. Raises
    TrainingError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise TrainingError(f"{error.filename} cannot be read: {error.strerror}.")

    for folder, names, files in os.walk(root, onerror=refuse):
        names.sort()
        if run_log.FILE in files:
            yield Path(folder)


def _evaluation(run: RecordedRun) -> tuple[dict[str, Any], str]:
    """The evaluation of the best weights on the run's own data, or why there is none."""
    try:
        found = json.loads((run.folder / run_log.EVALUATION).read_bytes())
        epoch, own_data = found["epoch"], found["own_data"]
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError):
        return {}, "cannot be read; run `latentd evaluate` again"
    if not own_data:
        return {}, "is of other data than the run's, and left out"
    best = run.best.get("epoch")
    if epoch != best:
        return {}, f"is of epoch {epoch}, but the best is {best}; run `latentd evaluate` again"
    return found, ""


def _is_locked(path: Path) -> bool:
    """Whether a training has the log open: it holds a shared lock on it."""
    with path.open("rb") as log:
        for _ in range(_PROBES):
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # a file system without locks
                return False
            return False
    return True
