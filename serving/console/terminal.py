"""Output for people on a terminal."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latentd.client.results import ModelInfo, ModelVersion, Rows
from latentd.codec import Array
from latentd.columns import describe
from latentd.shapes import format_lengths
from latentd.texts import printable


def show_model(info: ModelInfo) -> None:
    """Print GetModel's response, one line for each field."""
    x, z = (format_lengths(rows.shape.json) for rows in (info.x, info.z))
    print(f"{info.served_by}, served: {', '.join(map(str, info.versions))}")
    rate = f" at {info.x.sample_rate} Hz" if info.x.sample_rate else ""
    print(f"  {info.default.x.plural}{rate}, created {info.created}")
    x_line = f"{info.x.dtype} {x}, {_range(info.x.range)}"
    if info.default.x.is_text:
        x_line = f"at most {info.default.x.size - 1} bytes of UTF-8, as {info.x.dtype} {x}"
    print(f"  x              {x_line}")
    if info.x.columns:
        print(f"  columns        {describe(info.x.columns)}")
    print(f"  z              float32 {z}, {info.posterior} posterior")
    for axis in info.axes.values():
        print(f"  {axis.name:14} {axis.expected}, by default {axis.default}")
    print(f"  p(z)           {info.prior or 'none'}")
    parameters = f" ({', '.join(info.parameters)})" if info.parameters else ""
    print(f"  p(x | z)       {info.likelihood or 'none'}{parameters}")
    for name, tile in info.tiles.items():
        how = "exact" if tile.exact else f"{tile.decibels:g} dB"
        print(f"  {name} tiles  {format_lengths(tile.size.values())}, {how}")
    if info.threshold:
        print(f"  threshold      {info.threshold}")
    for name, reason in info.unavailable.items():
        print(f"  no {name:11} this model {reason}")
    print(f"  preprocessing  {info.preprocessing}")
    limits = info.limits
    rows = f"{limits.max_rows} rows{' of the default size' if info.axes else ''}"
    message = f"{limits.max_message_bytes >> 20} MiB per message"
    print(f"  limits         {rows}, {message}, {limits.max_draws} draws per row")
    print(f"  provider       {info.provider}")
    for graph in info.profiles:
        known = [rows for rows in (1, graph.max_batch_rows) if rows in graph.seconds]
        costs = "".join(
            f", {graph.seconds[rows] * 1e3:.3g} ms for {rows} row{'s' * (rows > 1)}"
            for rows in known
        )
        size = f" of {format_lengths(graph.x_shape)}" if info.axes else ""
        print(f"  {graph.graph:14} batches of up to {graph.max_batch_rows} rows{size}{costs}")


def model_document(info: ModelInfo) -> dict[str, Any]:
    """GetModel's response for JSON. An infinite range is null."""
    document = dataclasses.asdict(info)
    document["x"]["shape"], document["z"]["shape"] = info.x.shape.json, info.z.shape.json
    document["contributions"] = info.contributions and info.contributions.json
    if math.inf in info.x.range:
        document["x"]["range"] = None
    return document


class Tiled(Protocol):
    """A result of the client."""

    @property
    def tiled(self) -> str: ...


def print_result(
    what: str, path: Path | None, served_by: ModelVersion, **replay: int | None
) -> None:
    """Print one line: the result, its file, and the values that reproduce it."""
    where = f" in {path}" if path else ""
    numbers = "".join(f", {name} {value}" for name, value in replay.items() if value is not None)
    print(f"{what}{where}, by {served_by}{numbers}.")


def print_texts(info: ModelInfo, path: Path | None, *parts: Rows) -> None:
    """Print the rows of a model of text, one a line, unless a file has them."""
    if info.default.x.is_text and path is None:
        for part in parts:
            for text in part.texts:
                print(printable(text))


def print_outside_range(counts: Array | None) -> None:
    """Print one line if rows have values outside the training data's range; None: no row has."""
    if counts is not None:
        rows = sum(count > 0 for count in counts)
        print(f"{rows} of {len(counts)} rows hold values outside the range of the training data.")


def print_tiled(results: Iterable[Tiled]) -> None:
    """Print one line if rows were run in tiles."""
    ways = {result.tiled for result in results} - {""}
    if ways:
        print(f"Rows were run in tiles: {min(ways)}.")  # approximate before exact


def describe_rows(info: ModelInfo, rows: int, lengths: Sequence[int]) -> str:
    """Number, dtype and shape of rows; of texts, their number."""
    if info.default.x.is_text:
        return f"{rows} text{'s' * (rows != 1)}"
    return f"{rows} rows of {info.x.dtype} {format_lengths(lengths)}"


def _range(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return "any finite number" if math.inf in bounds else f"{low:g} to {high:g}"


def show_table(columns: Mapping[str, Array], shown: Array | None = None) -> None:
    """Print one line for each row, and then the mean of each column over all rows.

    shown: whether a row gets a line; None: every row does
    """
    if not columns:
        return
    print(f"{'row':>6}" + "".join(f"{name:>22}" for name in columns))
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        if shown is None or shown[row]:
            print(f"{row:6}" + "".join(map(_cell, values)))
    print(f"{'mean':>6}" + "".join(f"{np.nanmean(values):22.3f}" for values in columns.values()))


def _cell(value: Any) -> str:
    return f"{str(value).lower():>22}" if value.dtype == bool else f"{value:22.3f}"


class ProgressBar:
    """Prints the rows so far on stderr, if it is a terminal, at most ten times a second."""

    def __init__(self, count: int) -> None:
        self._count, self._rows = count, 0
        self._start = self._shown = time.monotonic()
        self._enabled = sys.stderr.isatty()

    def __call__(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if self._enabled and now - self._shown > 0.1:
            self._shown = now
            speed = self._rows / (now - self._start)
            line = f"\r{self._rows:,} of {self._count:,} rows, {speed:,.0f} per second "
            print(line, end="", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
