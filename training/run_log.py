"""log.jsonl: one line for the run, one for each epoch, one for the test rows. Reading it needs no
torch, and works while a training writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

FILE: Final = "log.jsonl"
EVALUATION: Final = "evaluation.json"
_NUMBERS: Final = ("train_", "validation_", "test_", "seconds", "skipped_steps")


@dataclass(frozen=True)
class RunLog:
    """The lines of a log, as far as they can be read."""

    header: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)  # {}: the training has not ended
    fault: str = ""  # what is wrong with the first line that cannot be read


def read(path: Path) -> RunLog:
    """The lines up to the first that is not one of a training's. Raises OSError."""
    log, lines = RunLog(), 0
    header, epochs, result = log.header, log.epochs, log.result
    try:
        with path.open("rb") as file:
            for line in new_lines(file):
                if lines == 0:
                    header.update(_checked(line, "run", dict))
                elif result:
                    raise ValueError("comes after the metrics of the test rows")
                elif "epoch" in line:
                    epochs.append(_checked(line, "epoch", int))
                else:
                    result.update(_checked(line, "best_epoch", int))
                lines += 1
            if file.read(1):
                raise ValueError("is not complete")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return RunLog(header, epochs, result, f"line {lines + 1} is not JSON")
    except ValueError as error:
        return RunLog(header, epochs, result, f"line {lines + 1} {error}")
    return RunLog(header, epochs, result, "" if lines else "it is empty")


def _checked(line: dict[str, Any], name: str, kind: type) -> dict[str, Any]:
    """The line, if it has what its kind of line has. Raises ValueError."""
    if not isinstance(line.get(name), kind):
        raise ValueError(f"is not one of `latentd train`: it has no {name!r}")
    for key, value in line.items():
        if key.startswith(_NUMBERS) and not isinstance(value, int | float):
            raise ValueError(f"has {value!r} for {key!r}, which is a number")
    return line


def new_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The lines from the file's position on. A line that is not complete yet is left there. Raises
    ValueError for a line that is not a JSON object."""
    while True:
        start = file.tell()
        raw = file.readline()
        if not raw.endswith(b"\n"):
            file.seek(start)
            return
        line = json.loads(raw)
        if not isinstance(line, dict):
            raise ValueError("is not a JSON object")
        yield line


def metrics(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, without the epoch's own."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and name != "epoch"
    }
