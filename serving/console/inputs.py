"""Read rows and latents from the files on the command line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np

from latentd.bundle import DataSpec
from latentd.client.arguments import DataPoint, LatentAnchor, LatentPoint, SampledPoint
from latentd.codec import Array
from latentd.console.groups import Group, by_size
from latentd.errors import InvalidArgument
from latentd.model_description import ModelDescription
from latentd.readers import files, kinds, sources
from latentd.readers.arrays import MAX_WHOLE_BYTES, ArrayFile, file_and_key
from latentd.readers.rows import Chunk
from latentd.readers.sources import FileCounts, Source
from latentd.readers.texts import to_chunk
from latentd.shapes import SizeError

_LATENTS: Final = ("z", "mean")
_TEXT: Final = "text:"
"""Before a text itself, where else a file is named."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read. fit: of images, one of pixels.FITS; column: of a Parquet file, "": x,
    or the only suitable one."""

    fit: str = "refuse"
    column: str = ""


def read_rows(
    patterns: Sequence[str], rows: slice, model: ModelDescription, options: ReadOptions
) -> list[Group]:
    """The range `rows` of the rows of all named files, by size.

    Or for a model of text, "text:WORDS" for each row. The readers of `latentd batch` read only
    those rows. If a folder or a glob is named, or a file is skipped, a line on stderr counts the
    files. Raises InvalidArgument, ConfigError or BadData with the file, and with the row if a row
    is at fault.
    """
    counts, found, x = FileCounts(), [], model.default.x
    if x.is_text and all(pattern.startswith(_TEXT) for pattern in patterns):
        return [Group(np.arange(len(patterns)), _given_texts(patterns, x))]
    for pattern in patterns:
        found += sources.find(pattern, counts)
    if counts.found != len(patterns):
        print(f"{counts}.", file=sys.stderr)
    if any(source.kind == "picture" for source in found) and not x.is_8bit_image:
        shape = list(x.shape)
        raise InvalidArgument("FILE", f"expected {x.plural} of {x.dtype} {shape}, got images")
    parts, total = [], 0
    sizes = [_size(source, model, options) for source in found]
    start, stop, _ = rows.indices(sum(sizes))
    if start >= stop:
        raise InvalidArgument("--rows", f"selects no rows out of {sum(sizes)}")
    if not model.axes:
        _check_bytes((stop - start) * x.nbytes)
    for source, size in zip(found, sizes, strict=True):
        first, last = max(start - total, 0), min(stop - total, size)
        if first < last:
            parts += _read(source, first, last, model, options)
            _check_bytes(sum(part.nbytes for part in parts))
        total += size
    return by_size(parts)


def _given_texts(patterns: Sequence[str], x: DataSpec) -> Array:
    given = [pattern.removeprefix(_TEXT).encode("utf-8", "surrogateescape") for pattern in patterns]
    chunk = to_chunk(given, patterns, 0, x)
    if chunk.bad:
        raise InvalidArgument(chunk.bad[0].id, chunk.bad[0].reason)
    return chunk.x


def _check_bytes(number: int) -> None:
    if number > MAX_WHOLE_BYTES:
        raise InvalidArgument(
            "--rows",
            f"the rows need more than {MAX_WHOLE_BYTES >> 30} GiB",
            "Choose fewer with --rows, or use `latentd batch`",
        )


def read_latents(path: str) -> Array:
    """z as it is in the file; from an .npz the array z, or mean if there is no z."""
    path = os.path.expanduser(path)
    if kinds.kind_of(file_and_key(path)[0]) not in ("npy", "npz"):
        raise InvalidArgument(path, "not a file of latents", "Use a .npy or .npz file")
    with closing(ArrayFile(path, _LATENTS)) as array:
        if array.dtype.kind not in "fiu":
            raise InvalidArgument(path, f"expected numeric latents, got {array.dtype}")
        if array.nbytes > MAX_WHOLE_BYTES:
            raise InvalidArgument(path, f"more than {MAX_WHOLE_BYTES >> 30} GiB of latents")
        z = array.read(0, array.shape[0])
    if not len(z):
        raise InvalidArgument(path, "has no latents", "It needs at least one")
    return z


def latent_rows(z: Array, model: ModelDescription) -> Array:
    """z of shape (rows, *z_shape), also of a single latent without an axis of rows."""
    return z[None] if z.ndim == len(model.z.shape.dims) else z


def read_point(
    text: str, model: ModelDescription, field: str, options: ReadOptions
) -> LatentAnchor:
    """One end of an interpolation: "seed:7", "seed:7@3", "z:FILE.npy", "text:WORDS" for a model of
    text, or a file of one row."""
    if text.startswith("seed:"):
        match = re.fullmatch(r"seed:(\d+)(?:@(\d+))?", text)
        if not match:
            raise InvalidArgument(field, f"invalid point {text!r}", "Use seed:7 or seed:7@3")
        return SampledPoint(int(match[1]), int(match[2] or 0))
    if text.startswith(_TEXT) and model.default.x.is_text:
        return DataPoint(_given_texts([text], model.default.x)[0])
    if text.startswith("z:"):
        z = latent_rows(read_latents(text.removeprefix("z:")), model)
        if len(z) != 1:
            raise InvalidArgument(field, f"expected exactly one latent, {text[2:]} has {len(z)}")
        return LatentPoint(z[0])
    row = _single(text, model)
    if row is not None:
        return DataPoint(row)
    groups = read_rows([text], slice(None), model, options)
    count = sum(len(group.x) for group in groups)
    if count != 1:
        raise InvalidArgument(field, f"expected exactly one row, {text} has {count}")
    return DataPoint(groups[0].x[0])


def _size(source: Source, model: ModelDescription, options: ReadOptions) -> int:
    with closing(sources.open_source(source, model, options.column)) as reader:
        return reader.rows


def _read(
    source: Source, start: int, stop: int, model: ModelDescription, options: ReadOptions
) -> list[Array]:
    """Rows start..stop in parts that each have one size."""
    opened = sources.open_source(source, model, options.column, fit=options.fit)
    one_size = (
        not model.axes or options.fit != "refuse" or source.kind not in ("picture", "parquet")
    )
    step = stop - start if one_size else 1  # a reader gives rows of one size at a time
    with closing(opened) as reader:
        chunks: list[Chunk] = [
            reader.read(first, min(first + step, stop)) for first in range(start, stop, step)
        ]
    bad = [row for chunk in chunks for row in chunk.bad]
    if bad:
        first, more = bad[0], len(bad) - 1
        name = files.printable(source.path)
        if source.kind == "picture":
            name = files.join(name, first.id) if name else first.id
        else:
            name = f"{name}, row {first.row}"
        raise InvalidArgument(
            name,
            first.reason + (f" (and {more:,} other invalid rows)" if more else ""),
        )
    return [chunk.x for chunk in chunks]


def _single(text: str, model: ModelDescription) -> Array | None:
    """The row of a .npy or .npz that has a single row and no row axis; else None."""
    path = os.path.expanduser(text)
    if kinds.kind_of(file_and_key(path)[0]) not in ("npy", "npz"):
        return None
    with closing(ArrayFile(path)) as array:
        dtype = np.dtype(model.x.dtype)
        try:
            model.shapes_of_x(array.shape)
        except SizeError:
            return None
        if array.dtype.kind != dtype.kind:
            return None
        return array.read(0, array.shape[0]).astype(dtype, copy=False)
