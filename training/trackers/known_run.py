"""Which run of a tracker belongs to a folder: OUT/tracker.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

FILE: Final = "tracker.json"


def load(out: Path, tracker: str) -> str | None:
    """The id that `save` wrote, or None."""
    found = _read(out).get(tracker)
    return found if isinstance(found, str) else None


def save(out: Path, tracker: str, run: str) -> None:
    """Remember the id of the tracker's run."""
    temporary = out / f".{FILE}.writing"
    temporary.write_text(json.dumps(_read(out) | {tracker: run}, indent=2) + "\n")
    temporary.replace(out / FILE)


def _read(out: Path) -> dict[str, object]:
    try:
        content = json.loads((out / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
