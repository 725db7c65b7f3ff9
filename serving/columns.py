"""Columns of rows whose values have meanings of their own: what each is called, and how its values
become numbers. Standard library only.

A row is float32 with one number for each column. In a numeric column it is the value, in the data's
own unit. In a categorical column it is the index of the value's level. All values that are no level
share the index after the last level: these are values that training has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

OTHER: Final = "(other)"
"""What stands for a value that is no level."""
MAX_COLUMNS: Final = 4096
MAX_LEVELS: Final = 255
MAX_NAME: Final = 256  # characters of a name and of a level

_NAMED: Final = 40  # columns in a description


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    levels:     the values of a categorical column, as text; (): the column is numeric
    mean, std:  of a numeric column in the training rows. The graphs standardize by them
    fill_value: the number that stands for a missing value; None: a row that lacks it is refused
    is_integer: all values of a numeric column are integers in the data: tables get it rounded
    """

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    fill_value: float | None = None
    is_integer: bool = False

    @property
    def is_categorical(self) -> bool:
        """Whether its numbers are indices of levels."""
        return bool(self.levels)

    @property
    def cardinality(self) -> int:
        """The number of levels of a categorical column and OTHER; 0: it is numeric."""
        return len(self.levels) + 1 if self.levels else 0

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        of_kind: dict[str, Any] = (
            {"levels": list(self.levels)} if self.levels else {"mean": self.mean, "std": self.std}
        )
        found = {"name": self.name} | of_kind
        if self.fill_value is not None:
            found["fill_value"] = self.fill_value
        return found | ({"is_integer": True} if self.is_integer else {})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Column:
        """A column from a manifest that was checked."""
        fill = raw.get("fill_value")
        return cls(
            raw["name"],
            tuple(raw.get("levels", ())),
            float(raw.get("mean", 0.0)),
            float(raw.get("std", 1.0)),
            None if fill is None else float(fill),
            raw.get("is_integer", False),
        )


def describe(columns: Sequence[Column]) -> str:
    """The names of columns, and how many levels a categorical one has."""
    names = [
        f"{c.name} ({len(c.levels)} values)" if c.is_categorical else c.name
        for c in columns[:_NAMED]
    ]
    more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
    return f"{', '.join(names)}{more}"


def are_valid(columns: Any) -> bool:
    """Whether this is a list that `from_json` reads, of columns with different names."""
    if not isinstance(columns, list | tuple) or not 1 <= len(columns) <= MAX_COLUMNS:
        return False
    if not all(isinstance(column, dict) and _is_column(column) for column in columns):
        return False
    return len({column["name"] for column in columns}) == len(columns)


def _is_column(raw: Mapping[str, Any]) -> bool:
    keys = set(raw) - {"fill_value", "is_integer"}
    fill = raw.get("fill_value", 0.0)
    if not _is_name(raw.get("name")) or not _is_number(fill):
        return False
    if keys == {"name", "levels"}:
        levels = raw["levels"]
        if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= MAX_LEVELS:
            return False
        is_index = fill in range(len(levels) + 1) and "is_integer" not in raw
        return all(map(_is_name, levels)) and len(set(levels)) == len(levels) and is_index
    if keys != {"name", "mean", "std"} or type(raw.get("is_integer", False)) is not bool:
        return False
    return _is_number(raw["mean"]) and _is_number(raw["std"]) and raw["std"] > 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_NAME and value.isprintable()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e30
