"""log.jsonl: one line for the run, one for each epoch, one for the test rows. Reading it needs no
torch, and works while a training writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

FILE: Final = "log.jsonl"


def new_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The lines from the file's position on. A line that is not complete yet is left there."""
    while True:
        start = file.tell()
        raw = file.readline()
        if not raw.endswith(b"\n"):
            file.seek(start)
            return
        yield json.loads(raw)


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, without the epoch's own."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and name != "epoch"
    }
