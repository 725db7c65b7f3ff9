"""From what --input names to the plan's inputs, and from those to rows.

An input's kind is told by its name: images .png and the like; .npy, .npz; .parquet; all else that
is a file is read as IDX, which MNIST's own names do not tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from serving import images
from serving.bundle import XSpec
from serving.errors import ConfigError
from serving.jobs.plan import Input, Plan
from serving.readers import files
from serving.readers.arrays import ArrayReader, file_of
from serving.readers.files import Found
from serving.readers.parquet import TableReader
from serving.readers.pictures import Names, PictureReader, is_picture
from serving.readers.rows import BadRow, Chunk, Reader

PLAN: str = "plan.json"
NAMES: str = "plan.names"


def look(
    patterns: Sequence[str], x: XSpec, column: str, id_column: str, known: Plan | None
) -> tuple[list[Input], bytes]:
    """The inputs that `patterns` name, and the content of plan.names.

    known: a plan whose sha256 of a file holds as long as that file's stamp is the same: without
    one, every input is read once. Raises ConfigError, BadData.
    """
    sums = {(i.path, i.stamp): i.sha256 for i in known.inputs} if known else {}
    inputs: list[Input] = []
    names = b""
    for pattern in patterns:
        found = files.find(pattern) if ".npz:" not in pattern else [Found(pattern)]
        single = [f for f in found if f.names is None and not is_picture(f.path)]
        for one in single:
            inputs.append(_look_at_file(one.path, x, column, id_column, sums))
        folder, pictures = _pictures(found)
        if pictures:
            if not images.fits(x):
                raise ConfigError(f"{pattern} holds images; this model's rows are none.")
            lines = Names.to_bytes(pictures)
            inputs.append(_look_at_pictures(folder, pictures, lines, sums))
            names += lines
        elif not single:
            raise ConfigError(f"--input {pattern}: no image below this folder.")
    if not sum(i.rows for i in inputs):
        raise ConfigError("--input holds no rows.")
    return inputs, names


def changed(plan: Plan, folder: Path) -> list[str]:
    """Paths of the inputs that are not what they were when the plan was made. One is read only
    where its stamp says that it was written to."""
    paths, first = [], 0
    for entry in plan.inputs:
        if entry.kind == "pictures":
            listed = Names(folder / NAMES)
            names = listed.read(first, first + entry.rows)
            listed.close()
            first += entry.rows
            stamp, _ = _stamp_pictures(entry.path, names)
            same = stamp == entry.stamp or _sha256_pictures(entry.path, names) == entry.sha256
        else:
            path = file_of(entry.path)
            _, stamp = files.size_and_stamp(path)
            same = stamp == entry.stamp or files.sha256(path) == entry.sha256
        if not same:
            paths.append(entry.path or "the images")
    return paths


class Rows:
    """The rows of all inputs, numbered through; opens what is asked for and keeps the last open."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._starts = [0, *accumulate(i.rows for i in plan.inputs)]
        self._open: tuple[int, Reader] | None = None
        self._names: Names | None = None

    def read(self, start: int, stop: int, most: int) -> Iterator[Chunk]:
        """Rows start..stop in chunks of up to `most` rows of one input each."""
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            shift = self._starts[index]
            end = min(start + most, stop, self._starts[index + 1])
            chunk = self._reader(index).read(start - shift, end - shift)
            bad = [BadRow(row.row + shift, row.id, row.reason) for row in chunk.bad]
            yield Chunk(chunk.rows + shift, chunk.ids, chunk.x, bad)
            start = end

    def close(self) -> None:
        for opened in (self._open and self._open[1], self._names):
            if opened:
                opened.close()
        self._open = self._names = None

    def _reader(self, index: int) -> Reader:
        if self._open is None or self._open[0] != index:
            if self._open is not None:
                self._open[1].close()
            self._open = index, self._make(index)
        return self._open[1]

    def _make(self, index: int) -> Reader:
        entry, x = self._plan.inputs[index], self._plan.x
        if entry.kind == "array":
            return ArrayReader(entry.path, x)
        if entry.kind == "table":
            return TableReader(entry.path, x, entry.column, entry.id_column, self._plan.resize)
        if self._names is None:
            self._names = Names(self._folder / NAMES)
        before = sum(i.rows for i in self._plan.inputs[:index] if i.kind == "pictures")
        return PictureReader(entry.path, self._names, before, x, self._plan.resize)


def _look_at_file(
    path: str, x: XSpec, column: str, id_column: str, sums: dict[tuple[str, str], str]
) -> Input:
    size, stamp = files.size_and_stamp(file_of(path))
    reader: ArrayReader | TableReader
    if path.endswith((".parquet", ".pq")):
        reader = TableReader(path, x, column, id_column)
        entry = Input("table", path, reader.rows, size, "", reader.column, id_column, stamp=stamp)
    else:
        reader = ArrayReader(path, x)
        entry = Input("array", path, reader.rows, size, "", stamp=stamp)
    reader.close()
    digest = sums.get((path, stamp)) or files.sha256(file_of(path))
    return dataclasses.replace(entry, sha256=digest)


def _pictures(found: Sequence[Found]) -> tuple[str, list[str]]:
    """The folder and the images below it, or no folder and the paths of those in a glob."""
    for one in found:
        if one.names is not None:
            return one.path, [name for name in one.names if is_picture(name)]
    return "", [one.path for one in found if is_picture(one.path)]


def _look_at_pictures(
    folder: str, names: Sequence[str], lines: bytes, sums: dict[tuple[str, str], str]
) -> Input:
    stamp, size = _stamp_pictures(folder, names)
    digest = sums.get((folder, stamp))
    return Input(
        *("pictures", folder, len(names), size, digest or _sha256_pictures(folder, names)),
        names=hashlib.sha256(lines).hexdigest(),
        stamp=stamp,
    )


def _sha256_pictures(folder: str, names: Sequence[str]) -> str:
    every = hashlib.sha256()
    for name in names:
        every.update(f"{name}\0{files.sha256(_path(folder, name))}\n".encode())
    return every.hexdigest()


def _stamp_pictures(folder: str, names: Sequence[str]) -> tuple[str, int]:
    """A stamp of all the files together, and their bytes."""
    stamps, total = hashlib.sha256(), 0
    for name in names:
        size, stamp = files.size_and_stamp(_path(folder, name))
        stamps.update(f"{name}\0{size}\0{stamp}\n".encode())
        total += size
    return stamps.hexdigest(), total


def _path(folder: str, name: str) -> str:
    return files.join(folder, name) if folder else name
