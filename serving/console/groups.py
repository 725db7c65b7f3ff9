"""Rows of several sizes: each size is sent in calls of its own, the results are put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import RowShapes
from latentd.client.results import ModelInfo
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.shapes import SizeError, format_lengths

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
            "Name the files of one size, or pass --fit resize",
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


def describe(groups: Sequence[Group]) -> str:
    """Number, dtype and sizes of the rows."""
    rows, first = sum(len(group.x) for group in groups), groups[0].x
    sizes = format_lengths(first.shape[1:]) if len(groups) == 1 else f"in {len(groups)} sizes"
    return f"{rows} rows of {first.dtype} {sizes}"


def values_outside_range(
    groups: Sequence[Group], parts: Sequence[tuple[Array | None, int]]
) -> Array | None:
    """The number of values of each row outside the model's range, from the counts and the number of
    rows of each response; None: all are 0."""
    if all(counts is None for counts, _ in parts):
        return None
    counts_of_rows = [
        np.zeros(rows, np.uint32) if counts is None else counts for counts, rows in parts
    ]
    return in_order(groups, np.concatenate(counts_of_rows))


def pieces_of(
    info: ModelInfo,
    shapes_of: Callable[[Sequence[int]], RowShapes],
    share: float = 1.0,
    contributions: bool = False,
) -> Callable[[Array], Iterator[slice]]:
    """Returns what gives the ranges of rows that fit into one call, also the response.

    shapes_of: the shapes of a row or of a latent with these lengths
    share:     so many times the server's limit of rows
    contributions: the response has those of each row
    """
    message = info.limits.max_message_bytes

    def pieces(rows: Array) -> Iterator[slice]:
        try:
            shapes = shapes_of(rows.shape[1:])
        except SizeError:
            shapes = info.default  # the server reports the error
        by_bytes = message // (2 * max(rows[0].nbytes, shapes.x.nbytes, 8 * shapes.z_size))
        limit = min(info.limits.max_rows, shapes.rows_in(message, contributions))
        step = max(1, min(limit, int(limit * share), by_bytes))
        for start in range(0, len(rows), step):
            yield slice(start, min(len(rows), start + step))

    return pieces
