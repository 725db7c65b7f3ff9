"""Quarantined rows: the limit of a job, and a summary of the reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from latentd.errors import ConfigError
from latentd.readers.rows import BadRow

SHOWN: Final = 5
"""Number of printed reasons."""

_LIMIT: Final = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_COLUMN: Final = re.compile(r"""(column (?:'[^']*'|"[^"]*"))""")


@dataclass(frozen=True, slots=True)
class Limit:
    """--max-quarantined: the maximum number of quarantined rows of a job that succeeds.

    text: "1%" of all rows, or "20" rows
    """

    text: str

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        match = _LIMIT.fullmatch(self.text)
        if match is None or (match[2] and Decimal(match[2]) > 100):
            raise ConfigError(
                f"--max-quarantined {self.text}: must be a percentage of the rows, 0% to 100%, or "
                "a number of rows, such as 20."
            )

    def rows(self, of: int) -> int:
        """The limit for a job of `of` rows; a percentage is rounded down."""
        if self.text.endswith("%"):
            return int(of * Decimal(self.text[:-1]) / 100)
        return int(self.text)


def share(bad: int, rows: int) -> str:
    """Number and percentage: "3 of 400 rows (0.75%)"."""
    return f"{bad:,} of {rows:,} rows ({100 * bad / max(rows, 1):.3g}%)"


def reasons(bad: Iterable[BadRow]) -> str:
    """One line for each of the most frequent reasons: the count, the reason, the first row.

    Reasons that differ only in numbers or in the row's name count as one, but not those of
    different columns.
    """
    groups: dict[str, list[BadRow]] = {}
    for row in bad:
        groups.setdefault(_general(row), []).append(row)
    ranked = sorted(groups.values(), key=len, reverse=True)
    lines = [_line(rows) for rows in ranked[:SHOWN]]
    if len(ranked) > SHOWN:
        rest = sum(map(len, ranked[SHOWN:]))
        lines.append(f"  {rest:>9,}  for {len(ranked) - SHOWN} other reasons")
    return "\n".join(lines)


def _general(row: BadRow) -> str:
    """The reason without numbers and the row's name, but with the names of columns."""
    parts = _COLUMN.split(row.reason)
    for at in range(0, len(parts), 2):  # columns are between them
        plain = parts[at].replace(row.id, "") if row.id else parts[at]
        parts[at] = _NUMBER.sub("0", plain)
    return "".join(parts)


def _line(rows: Sequence[BadRow]) -> str:
    first = rows[0]
    others = "such as" if any(row.reason != first.reason for row in rows) else "first"
    reason = first.reason.rstrip(".")
    return f"  {len(rows):>9,}  {reason} ({others}: row {first.row}, {first.id})"
