"""Tables as rows of numbers: every spelling of a value, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentd.columns import Column
from latentd.tables import to_rows

CODES = Column("a", ("0.5", "01", "1e-05", "x", "true"), fill_value=5.0)
NUMBER = Column("a", fill_value=7.0)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (CODES, ["0.50", ".5", 0.5, "1", "0.00001", "inf"], [0, 0, 0, 1, 2, 5]),
        (CODES, ["", None, "x", "True"], [5, 5, 3, 4]),
        (CODES, np.array([b"x", b"", b"\xe9"]), [3, 5, 5]),
        (NUMBER, ["", None, "2"], [7, 7, 2]),
        (NUMBER, np.ma.array([1, 2], mask=[False, True]), [1, 7]),
        (NUMBER, np.ma.array(["1", "x"], mask=[False, True]), [1, 7]),
        (NUMBER, np.array(["NaT"], "M8[ns]"), [7]),
    ],
    ids=["decimals", "empty", "bytes", "numeric", "masked-integers", "masked-text", "no-time"],
)
def test_values_become_numbers(column: Column, values: Any, expected: list[float]) -> None:
    rows, faults = to_rows([column], {"a": values}, len(values))
    assert (rows[:, 0].tolist(), faults) == (expected, {})


@pytest.mark.parametrize(
    ("values", "quoted"),
    [
        (np.array(["2020-01-01"], "M8[ns]"), "2020-01-01T00:00:00.000000000"),
        (np.array([5], "m8[ns]"), "5 nanoseconds"),
        ([np.datetime64("2020-01-01", "ns")], "2020-01-01T00:00:00.000000000"),
    ],
    ids=["times", "durations", "list"],
)
def test_times_are_no_numbers(values: Any, quoted: str) -> None:
    _, faults = to_rows([NUMBER], {"a": values}, 1)
    assert faults == {0: f"has a bad value: column 'a' holds {quoted!r}, not a number"}


@pytest.mark.parametrize("values", [[1.0], np.zeros((2, 1))], ids=["one", "nested"])
def test_columns_of_unequal_length_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'a' has .*; expected one for each of 2 rows"):
        to_rows([NUMBER], {"a": values}, 2)
