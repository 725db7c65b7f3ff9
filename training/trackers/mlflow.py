"""MLflow: a database beside the run's folder, for all runs there, or MLFLOW_TRACKING_URI.

mlflow ui --backend-store-uri sqlite:///runs/mlflow.db
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from latentd.training.trackers import known_run

_DATABASE: Final = "mlflow.db"
_ARTIFACTS: Final = "mlflow-artifacts"
_MOST: Final = 100  # parameters or tags in a call


class Run:
    """The settings are MLflow's parameters, the rest of the header is tags and header.json."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        beside = out.parent
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if store:
            self.client = MlflowClient(store)
            experiment = self._experiment(None)
        else:
            with _alone(beside):  # two trainings must not create the database at once
                self.client = MlflowClient(f"sqlite:///{beside / _DATABASE}")
                experiment = self._experiment((beside / _ARTIFACTS).as_uri())
        self.run, self.done = self._known(known_run.load(out, "mlflow"))
        if not self.run:
            self.run = self.client.create_run(experiment, run_name=out.name).info.run_id
            known_run.save(out, "mlflow", self.run)
            params = [Param(name, str(value)) for name, value in header["run"].items()]
            for start in range(0, len(params), _MOST):
                self.client.log_batch(self.run, params=params[start : start + _MOST])
        self.client.update_run(self.run, status="RUNNING")
        self.client.log_batch(self.run, tags=[RunTag(*pair) for pair in _tags(header)])
        self.client.log_dict(self.run, header, "header.json")

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "latentd")
        if found := self.client.get_experiment_by_name(name):
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    def _known(self, run: str | None) -> tuple[str, dict[str, set[int]]]:
        """The run if the store has it, and the epochs of each figure that it has."""
        if run is None:
            return "", {}
        try:
            found = self.client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return "", {}
        if found.info.lifecycle_stage == "deleted":
            return "", {}
        return run, {
            name: {point.step for point in self.client.get_metric_history(run, name)}
            for name in found.data.metrics
        }

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        points = [
            Metric(name, float(value), now, number)
            for name, value in metrics.items()
            if number not in self.done.get(name, ())
        ]
        if points:
            self.client.log_batch(self.run, metrics=points)

    def result(self, epoch: int, metrics: dict[str, float], pictures: list[Path]) -> None:
        self.epoch(epoch, metrics)
        for path in pictures:
            self.client.log_artifact(self.run, str(path), "pictures")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _tags(header: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The header but for the settings, which MLflow would not let a resumed run change."""
    for name, value in header.items():
        if name == "run":
            continue
        for inner, text in value.items() if isinstance(value, dict) else ((None, value),):
            yield (f"{name}.{inner}" if inner else name), str(text)
