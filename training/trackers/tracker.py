"""What each tracker does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """A run as a tracker keeps it. Every call may fail: then the run is opened once more later, and
    gets everything again from its first epoch."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        """Begin the run of the folder `out`, or continue it if the tracker has it already. Then no
        point that the tracker has may come twice. header: the first line of log.jsonl. out: an
        absolute path."""

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        """Take an epoch's metrics, under the names of log.jsonl."""

    def result(self, epoch: int, metrics: dict[str, float], pictures: list[Path]) -> None:
        """Take the metrics of the test rows, and pictures. epoch: the one of the best weights."""

    def close(self, finished: bool) -> None:
        """End the run, and wait until everything is kept. finished: False if it was stopped."""
