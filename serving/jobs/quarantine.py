"""Quarantined rows: how many of them a job may have, and for which reasons it has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from latentd.errors import ConfigError
from latentd.readers.rows import BadRow

SHOWN: Final = 5
"""Reasons that are printed."""

_LIMIT: Final = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Limit:
    """The most rows that a job may quarantine and still succeed: --max-quarantined.

    text: as it was given, "1%" of all rows or "20" of them
    """

    text: str

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        found = _LIMIT.fullmatch(self.text)
        if found is None or (found[2] and Decimal(found[2]) > 100):
            raise ConfigError(
                f"--max-quarantined {self.text}: give a percentage of the rows, 0% to 100%, or a "
                "number of rows, such as 20."
            )

    def rows(self, of: int) -> int:
        """The rows that may be quarantined of so many; a percentage is rounded down."""
        if self.text.endswith("%"):
            return int(of * Decimal(self.text[:-1]) / 100)
        return int(self.text)


def share(bad: int, rows: int) -> str:
    """How many, and in percent: "3 of 400 rows (0.75%)"."""
    return f"{bad:,} of {rows:,} rows ({100 * bad / max(rows, 1):.3g}%)"


def reasons(bad: Iterable[BadRow]) -> str:
    """A line for each of the most frequent reasons: the count, the reason, the first row.

    Reasons that differ only in numbers, or in the row's own name, are counted as one.
    """
    groups: dict[str, list[BadRow]] = {}
    for row in bad:
        general = _NUMBER.sub("0", row.reason.replace(row.id, "") if row.id else row.reason)
        groups.setdefault(general, []).append(row)
    ranked = sorted(groups.values(), key=len, reverse=True)
    lines = [_line(rows) for rows in ranked[:SHOWN]]
    if len(ranked) > SHOWN:
        rest = sum(map(len, ranked[SHOWN:]))
        lines.append(f"  {rest:>9,}  for {len(ranked) - SHOWN} other reasons")
    return "\n".join(lines)


def _line(rows: Sequence[BadRow]) -> str:
    first = rows[0]
    others = "such as" if any(row.reason != first.reason for row in rows) else "first"
    reason = first.reason.rstrip(".")
    return f"  {len(rows):>9,}  {reason} ({others}: row {first.row}, {first.id})"
