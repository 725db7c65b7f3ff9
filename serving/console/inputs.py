"""Files of rows and latents that a person names on the command line, as arrays."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np

from latentd import images
from latentd.bundle import DataSpec
from latentd.client.arguments import DataPoint, LatentAnchor, LatentPoint, SampledPoint
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.readers import files, kinds, sources
from latentd.readers.arrays import MAX_WHOLE_BYTES, ArrayFile, file_and_key
from latentd.readers.rows import Chunk
from latentd.readers.sources import Counts, Source

_LATENTS: Final = ("z", "mean")


@dataclass(frozen=True, slots=True)
class How:
    """How files become rows of the model. likelihood: the model's; resize: images are converted and
    resized to its own; column: of a Parquet file, "": x, or the only one that can hold rows."""

    likelihood: str
    resize: bool = False
    column: str = ""


def read_rows(patterns: Sequence[str], rows: slice, x: DataSpec, how: How) -> Array:
    """The rows of what is named, one file below the other, then `rows` of them.

    Files are read by the readers of `latentd batch`, and only those rows. Where a folder or
    a glob is named, or a file is left out, a line on stderr says how many were taken. Raises
    InvalidArgument, ConfigError or BadData naming the file, and the row where it is a row's fault.
    """
    counts, found = Counts(), []
    for pattern in patterns:
        found += sources.find(pattern, counts)
    if counts.found != len(patterns):
        print(f"{counts}.", file=sys.stderr)
    if any(source.kind == "picture" for source in found) and not images.is_png_compatible(x):
        shape = list(x.shape)
        raise InvalidArgument(
            "FILE", f"images, where the model takes {x.kind}s of {x.dtype} {shape}"
        )
    parts, total = [], 0
    sizes = [_size(source, x, how) for source in found]
    start, stop, _ = rows.indices(sum(sizes))
    if start >= stop:
        raise InvalidArgument("--rows", f"no rows are left of {sum(sizes)}")
    if (stop - start) * x.nbytes > MAX_WHOLE_BYTES:
        raise InvalidArgument(
            "--rows",
            f"{stop - start:,} rows take more than {MAX_WHOLE_BYTES >> 30} GiB",
            "Choose fewer with --rows, or use `latentd batch`",
        )
    for source, size in zip(found, sizes, strict=True):
        begin, end = max(start - total, 0), min(stop - total, size)
        if begin < end:
            parts.append(_read(source, begin, end, x, how))
        total += size
    every: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return every


def read_latents(path: str) -> Array:
    """z of shape (rows, latent size); of an .npz the key z or, where there is none, mean."""
    path = os.path.expanduser(path)
    if kinds.kind_of(file_and_key(path)[0]) not in ("npy", "npz"):
        raise InvalidArgument(path, "no file of latents", "Give a .npy or .npz file")
    with closing(ArrayFile(path, _LATENTS)) as array:
        if array.dtype.kind not in "fiu":
            raise InvalidArgument(path, f"{array.dtype}, where latents are numbers")
        if array.nbytes > MAX_WHOLE_BYTES:
            raise InvalidArgument(path, f"more than {MAX_WHOLE_BYTES >> 30} GiB of latents")
        z = array.read(0, array.shape[0])
    if not len(z):
        raise InvalidArgument(path, "no latents in it", "Give at least one")
    return z[None] if z.ndim == 1 else z


def read_point(text: str, x: DataSpec, field: str, how: How) -> LatentAnchor:
    """An end point: "seed:7", "seed:7@3", "z:FILE.npy", or a file of one row."""
    if text.startswith("seed:"):
        match = re.fullmatch(r"seed:(\d+)(?:@(\d+))?", text)
        if not match:
            raise InvalidArgument(field, f"{text!r} is no sampled point", "Say seed:7 or seed:7@3")
        return SampledPoint(int(match[1]), int(match[2] or 0))
    if text.startswith("z:"):
        z = read_latents(text.removeprefix("z:"))
        if len(z) != 1:
            raise InvalidArgument(field, f"{text[2:]} holds {len(z)} latents, where one is due")
        return LatentPoint(z[0])
    row = _single(text, x)
    if row is not None:
        return DataPoint(row)
    rows = read_rows([text], slice(None), x, how)
    if len(rows) != 1:
        raise InvalidArgument(field, f"{text} holds {len(rows)} rows, where one is due")
    return DataPoint(rows[0])


def _size(source: Source, x: DataSpec, how: How) -> int:
    with closing(sources.open_source(source, x, how.likelihood, how.column)) as reader:
        return reader.rows


def _read(source: Source, start: int, stop: int, x: DataSpec, how: How) -> Array:
    opened = sources.open_source(source, x, how.likelihood, how.column, resize=how.resize)
    with closing(opened) as reader:
        chunk: Chunk = reader.read(start, stop)
    if chunk.bad:
        first, more = chunk.bad[0], len(chunk.bad) - 1
        name = files.printable(source.path)
        if source.kind == "picture":
            name = files.join(name, first.id) if name else first.id
        else:
            name = f"{name}, row {first.row}"
        raise InvalidArgument(
            name,
            first.reason + (f" (and {more:,} other rows cannot be used)" if more else ""),
        )
    return chunk.x


def _single(text: str, x: DataSpec) -> Array | None:
    """The row of a .npy or .npz that holds one without an axis of rows; else None."""
    path = os.path.expanduser(text)
    if kinds.kind_of(file_and_key(path)[0]) not in ("npy", "npz"):
        return None
    with closing(ArrayFile(path)) as array:
        if array.shape != x.shape or array.dtype.kind != np.dtype(x.dtype).kind:
            return None
        return array.read(0, array.shape[0]).astype(x.dtype, copy=False)
