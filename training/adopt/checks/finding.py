"""What a check has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """The outcome of a check that passed.

    line:    its figures, for people
    figures: the same for the manifest, as JSON has it
    """

    line: str
    figures: Mapping[str, Any]
