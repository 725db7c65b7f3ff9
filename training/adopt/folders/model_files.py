"""The files of a model: their digests, and the license that its README states."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

_README: Final = "README.md"
_MAX_BYTES: Final = 1 << 20
_FRONT_MATTER: Final = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def digest(path: Path) -> dict[str, Any]:
    """Of a file, as the manifest has it."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": found, "bytes": file.tell()}


def license(*folders: Path) -> str | None:
    """The `license` of the first README that begins with one, as model hubs have it; license_name
    where the license is "other"."""
    for folder in folders:
        try:
            with (folder / _README).open("rb") as file:
                text = file.read(_MAX_BYTES).decode(errors="replace")
        except OSError:
            continue
        if front := _FRONT_MATTER.match(text):
            found = _value(front[1], "license")
            if found == "other":
                found = _value(front[1], "license_name") or found
            if found:
                return found
    return None


def _value(front: str, key: str) -> str | None:
    """Of a key with one value, in YAML that is no more than that."""
    line = re.search(rf"^{key}:[ \t]*(['\"]?)([^\n]*?)\1[ \t]*$", front, re.MULTILINE)
    return line[2] or None if line else None
