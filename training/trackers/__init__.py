"""Trackers: the tools in which people follow runs. A tracker reads log.jsonl behind the training,
so that it can neither stop nor slow it.

A new tracker is a module here with a class `Run`, as `tracker.py` describes it, and a line in
KINDS. This module imports nothing heavy: the command line needs it for `--help`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from latentd.training.errors import TrainingError

NONE: Final = "none"


@dataclass(frozen=True)
class Kind:
    """What a tracker needs."""

    package: str
    extra: str  # of latentd, which installs the package
    own_process: bool = True  # False: quick, and waits for no service
    environment: Mapping[str, str] = field(default_factory=dict)  # unless the user says otherwise


KINDS: Final = {
    "tensorboard": Kind("tensorboardX", "train", own_process=False),
    "mlflow": Kind(
        "mlflow",
        "mlflow",
        environment={
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # A server that does not answer is tried again after the next epoch.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        },
    ),
    "wandb": Kind(
        "wandb", "wandb", environment={"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    ),
}


def require(name: str) -> None:
    """Raise TrainingError that names the extra if the tracker's package is not installed."""
    if name == NONE:
        return
    kind = KINDS[name]
    if importlib.util.find_spec(kind.package) is None:
        raise TrainingError(
            f"--tracker {name} needs the package {kind.package}, which is not installed. "
            f"Run: pip install 'latentd[{kind.extra}]', or choose another --tracker."
        )
