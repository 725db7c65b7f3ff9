"""From what --input names to the plan's inputs, and from those to rows."""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from serving import images
from serving.bundle import XSpec
from serving.errors import BadData, ConfigError
from serving.jobs.plan import Input, Plan
from serving.readers import files, sources
from serving.readers.arrays import ArrayReader, file_and_key
from serving.readers.parquet import TableReader
from serving.readers.pictures import Names, PictureReader
from serving.readers.rows import BadRow, Chunk, Reader
from serving.readers.sources import Counts, Source

PLAN: str = "plan.json"
NAMES: str = "plan.names"


def look(
    patterns: Sequence[str], x: XSpec, column: str, id_column: str, known: Plan | None
) -> tuple[list[Input], bytes, Counts]:
    """The inputs that `patterns` name, the content of plan.names, and how many files were found,
    taken and left out.

    known: a plan whose sha256 of a file holds as long as that file's stamp is the same: without
    one, every input is read once. Raises ConfigError, BadData.
    """
    sums = {(i.path, i.stamp): i.sha256 for i in known.inputs} if known else {}
    inputs: list[Input] = []
    names, counts = b"", Counts()
    for pattern in patterns:
        for source in sources.find(pattern, counts, "--input"):
            if source.kind != "picture":
                inputs.append(_look_at_file(source, x, column, id_column, sums))
                continue
            if not images.fits(x):
                raise ConfigError(
                    f"--input {files.printable(pattern)} holds images; this model takes "
                    f"{x.kind}s of {x.dtype} {list(x.shape)}."
                )
            lines = Names.to_bytes(source.names)
            inputs.append(_look_at_pictures(source, lines, sums))
            names += lines
    if not sum(i.rows for i in inputs):
        raise ConfigError("--input holds no rows.")
    return inputs, names, counts


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
            path, _ = file_and_key(entry.path)
            _, stamp = files.size_and_stamp(path)
            same = stamp == entry.stamp or files.sha256(path) == entry.sha256
        if not same:
            paths.append(files.printable(entry.path) or "the images")
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
        every = self._names
        before = sum(i.rows for i in self._plan.inputs[:index] if i.kind == "pictures")
        return PictureReader(
            entry.path,
            lambda start, stop: every.read(before + start, before + stop),
            entry.rows,
            x,
            self._plan.resize,
        )


def _look_at_file(
    source: Source, x: XSpec, column: str, id_column: str, sums: dict[tuple[str, str], str]
) -> Input:
    path, _ = file_and_key(source.path)
    size, stamp = files.size_and_stamp(path)
    reader = sources.open_source(source, x, column, id_column)
    if isinstance(reader, TableReader):
        kind, columns = "table", (reader.column, id_column)
    else:
        kind, columns = "array", ("", "")
    entry = Input(kind, source.path, reader.rows, size, "", *columns, stamp=stamp)
    reader.close()
    digest = sums.get((source.path, stamp)) or files.sha256(path)
    return dataclasses.replace(entry, sha256=digest)


def _look_at_pictures(source: Source, lines: bytes, sums: dict[tuple[str, str], str]) -> Input:
    folder, names = source.path, source.names
    stamp, size = _stamp_pictures(folder, names)
    digest = sums.get((folder, stamp))
    return Input(
        *("pictures", folder, len(names), size, digest or _sha256_pictures(folder, names)),
        names=hashlib.sha256(lines).hexdigest(),
        stamp=stamp,
    )


def _sha256_pictures(folder: str, names: Sequence[str]) -> str:
    """Of all the files together; one that cannot be read is a bad row later, and no error here."""
    every = hashlib.sha256()
    for name in names:
        try:
            digest = files.sha256(_path(folder, name))
        except BadData:
            digest = "unreadable"
        every.update(f"{name}\0{digest}\n".encode("utf-8", "surrogatepass"))
    return every.hexdigest()


def _stamp_pictures(folder: str, names: Sequence[str]) -> tuple[str, int]:
    """A stamp of all the files together, and their bytes."""
    stamps, total = hashlib.sha256(), 0
    for name in names:
        try:
            size, stamp = files.size_and_stamp(_path(folder, name))
        except BadData:
            size, stamp = 0, "unreadable"
        stamps.update(f"{name}\0{size}\0{stamp}\n".encode("utf-8", "surrogatepass"))
        total += size
    return stamps.hexdigest(), total


def _path(folder: str, name: str) -> str:
    return files.join(folder, name) if folder else name
