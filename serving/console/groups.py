"""Rows of several sizes: each size is sent in calls of its own, the results are put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.shapes import format_lengths

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one size. places: where they stand among all rows, ascending."""

    places: NDArray[np.int64]
    x: Array


def by_size(parts: Sequence[Array]) -> list[Group]:
    """The rows of all parts, in the order of the parts, by size; each part has one size."""
    found: dict[tuple[int, ...], list[tuple[int, Array]]] = {}
    start = 0
    for part in parts:
        found.setdefault(part.shape[1:], []).append((start, part))
        start += len(part)
    return [
        Group(
            np.concatenate([np.arange(start, start + len(part)) for start, part in same]),
            same[0][1] if len(same) == 1 else np.concatenate([part for _, part in same]),
        )
        for same in found.values()
    ]


def check_one_size(groups: Sequence[Group]) -> None:
    """Raise InvalidArgument unless all rows have one size, as one array needs."""
    if len(groups) > 1:
        named = [f"{len(group.x)} of {format_lengths(group.x.shape[1:])}" for group in groups[:4]]
        more = f" and {len(groups) - 4} others" if len(groups) > 4 else ""
        raise InvalidArgument(
            "FILE",
            f"the rows have several sizes ({', '.join(named)}{more}), and one array holds one size",
            "Name the files of one size, or pass --resize",
        )


def call_each(
    groups: Sequence[Group],
    pieces: Callable[[Array], Iterable[slice]],
    call: Callable[[Array, int], T],
) -> list[T]:
    """The results for all rows, group by group.

    pieces: ranges of rows that fit into one call
    call:   takes rows, and the number of rows before them: each row has noise of its own
    """
    results, offset = [], 0
    for group in groups:
        for piece in pieces(group.x):
            results.append(call(group.x[piece], offset + piece.start))
        offset += len(group.x)
    return results


def in_order(groups: Sequence[Group], values: Array) -> Array:
    """Values of each row, which are given group by group, in the order of the rows."""
    ordered = np.empty_like(values)
    ordered[np.concatenate([group.places for group in groups])] = values
    return ordered


def images_in_order(groups: Sequence[Group], parts: Sequence[Array]) -> Array:
    """Images, which are given group by group, in the order of the rows. If they have several sizes,
    white is added to the right and below."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    rows: Any = np.concatenate([_enlarged(part, height, width) for part in parts])
    return in_order(groups, rows)


def _enlarged(part: Array, height: int, width: int) -> Array:
    if part.shape[1:3] == (height, width):
        return part
    enlarged = np.full((len(part), height, width, *part.shape[3:]), 255, part.dtype)
    enlarged[:, : part.shape[1], : part.shape[2]] = part
    return enlarged


def describe(groups: Sequence[Group]) -> str:
    """Number, dtype and sizes of the rows."""
    rows, first = sum(len(group.x) for group in groups), groups[0].x
    sizes = format_lengths(first.shape[1:]) if len(groups) == 1 else f"in {len(groups)} sizes"
    return f"{rows} rows of {first.dtype} {sizes}"
