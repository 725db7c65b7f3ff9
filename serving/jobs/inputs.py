"""Find the inputs that --input names, and read their rows."""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Final, Self

import numpy as np

from latentd import images
from latentd.bundle import RowShapes
from latentd.errors import BadData, ConfigError, InvalidArgument
from latentd.jobs import sizes
from latentd.jobs.model_rows import ModelRows
from latentd.jobs.plan import Input, Plan
from latentd.jobs.sizes import SizeFile
from latentd.readers import files, sources, verified
from latentd.readers.arrays import ArrayReader, file_and_key
from latentd.readers.parquet import ParquetColumnReader
from latentd.readers.pictures import Names, PictureReader, file_path, find_shapes
from latentd.readers.rows import BadRow, Chunk, Reader, join
from latentd.readers.sources import FileCounts, Source
from latentd.readers.tables import TableReader
from latentd.readers.texts import TextReader
from latentd.readers.verified import DIGEST_BYTES, Digests, open_verified

PLAN: str = "plan.json"
NAMES: str = "plan.names"
SUMS: str = "plan.sums"
SIZES: str = "plan.sizes"
_UNREADABLE: Final = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The inputs that --input names.

    names:  the content of plan.names, the names of all images
    sums:   the content of plan.sums: for each input, the sha256 of every block of verified.BLOCK
            bytes, or of every image
    sizes:  the content of plan.sizes: the size of every row of the inputs with several
    counts: number of files found, taken and left out
    """

    inputs: tuple[Input, ...]
    names: bytes
    sums: bytes
    sizes: bytes
    counts: FileCounts

    def files(self) -> dict[str, bytes]:
        """The files that are stored with the plan, by name."""
        several = {SIZES: self.sizes} if self.sizes else {}
        return {NAMES: self.names, SUMS: self.sums} | several

    def runs(self, model: ModelRows) -> Iterator[tuple[int, RowShapes]]:
        """Rows of the same shapes that follow each other: their number and shapes, for all rows."""
        axes, first = len(model.axes), 0
        of_size = functools.cache(model.of_size)  # one size may come back a million times
        for entry in self.inputs:
            if entry.sizes:
                lengths = np.frombuffer(self.sizes, "<u4").reshape(-1, axes)
                for count, size in sizes.runs(lengths[first : first + entry.rows]):
                    yield count, of_size(size)
                first += entry.rows
            else:
                yield entry.rows, model.of_size(entry.size)


def find_inputs(
    patterns: Sequence[str],
    model: ModelRows,
    options: ReadOptions,
    known: Plan | None,
    folder: Path,
) -> FoundInputs:
    """Find the inputs that `patterns` name; compute their checksums and the sizes of their rows.

    known: the plan in `folder`. What it knows of an input is reused if the input's stamp is
    unchanged; otherwise the input is read once. Raises ConfigError, BadData.
    """
    known_inputs = _read_known(known, folder, model, options)
    described: list[_Described] = []
    names, counts = b"", FileCounts()
    for pattern in patterns:
        for source in sources.find(pattern, counts, "--input"):
            if source.kind != "picture":
                described.append(_describe_file(source, model, options, known_inputs))
            elif model.default.x.is_8bit_image:
                described.append(_describe_pictures(source, model, options, known_inputs))
                names += Names.to_bytes(source.names)
            else:
                raise ConfigError(
                    f"--input {files.printable(pattern)} has images; this model takes "
                    f"{model.default.x.plural} of {model.x.dtype} {model.x.shape}."
                )
    if not sum(one.entry.rows for one in described):
        raise ConfigError("--input has no rows.")
    return FoundInputs(
        tuple(one.entry for one in described),
        names,
        b"".join(one.digests for one in described),
        b"".join(one.sizes for one in described),
        counts,
    )


def changed(plan: Plan, folder: Path) -> list[str]:
    """Paths of the inputs that changed since the plan was made. An input is read only if its stamp
    changed."""
    paths, first = [], 0
    for entry in plan.inputs:
        if entry.kind == "pictures":
            with closing(Names(folder / NAMES)) as stored:
                names = stored.read(first, first + entry.rows)
            first += entry.rows
            stamp, _ = _stamp_pictures(entry.path, names)
            same = stamp == entry.stamp or _sum_pictures(entry.path, names)[0] == entry.sha256
        else:
            path, _ = file_and_key(entry.path)
            _, stamp = files.size_and_stamp(path)
            same = stamp == entry.stamp or files.sha256(path).hex() == entry.sha256
        if not same:
            paths.append(files.printable(entry.path) or "the images")
    return paths


class RowReader:
    """Reads the rows of all inputs, numbered over the job. It keeps only the last input open.

    consecutive: the rows of a chunk follow each other, and so do the chunks
    """

    def __init__(self, plan: Plan, folder: Path, consecutive: bool = False) -> None:
        self._plan, self._folder, self._consecutive = plan, folder, consecutive
        self._starts = [0, *accumulate(i.rows for i in plan.inputs)]
        self._open: tuple[int, Reader] | None = None
        self._names: Names | None = None
        self._sums: Digests | None = None
        self._sizes: SizeFile | None = None

    def read(self, start: int, stop: int) -> Iterator[Chunk]:
        """Rows start..stop in chunks, which are the batches. The rows of a chunk have one input and
        one size; they are in order, and so are the chunks if the rows of an input have one size."""
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[index + 1])
            entry = self._plan.inputs[index]
            if entry.sizes:
                yield from self._read_mixed(index, start, end)
            else:
                rows = self._plan.rows_per_batch(self._plan.data.of_size(entry.size))
                for first in range(start, end, rows):
                    yield self._read_from(index, first, min(first + rows, end))
            start = end

    def close(self) -> None:
        for opened in (self._open and self._open[1], self._names, self._sums, self._sizes):
            if opened:
                opened.close()
        self._open = self._names = self._sums = self._sizes = None

    def _read_from(self, index: int, start: int, stop: int) -> Chunk:
        shift = self._starts[index]
        chunk = self._reader(index).read(start - shift, stop - shift)
        bad = [BadRow(row.row + shift, row.id, row.reason) for row in chunk.bad]
        return replace(chunk, rows=chunk.rows + shift, bad=bad)

    def _read_mixed(self, index: int, start: int, stop: int) -> Iterator[Chunk]:
        """Rows of one input with several sizes, read in order. A chunk is given once its last row
        is read. The plan alone decides which rows it has, so a bad row changes no other batch."""
        plan, lengths = self._plan, self._lengths(index, start, stop)

        def limit(size: sizes.Size) -> int:
            return plan.rows_per_batch(plan.data.of_size(size))

        batches = sizes.batches(lengths, limit, self._consecutive)
        batch_of = np.empty(stop - start, np.int64)
        for number, rows in enumerate(batches):
            batch_of[rows] = number
        pending: dict[int, list[Chunk]] = {}
        for row, number in enumerate(batch_of.tolist()):
            read = self._read_from(index, start + row, start + row + 1)
            pending.setdefault(number, []).append(read)
            if row == batches[number][-1]:
                yield join(pending.pop(number), plan.x)

    def _lengths(self, index: int, start: int, stop: int) -> sizes.Lengths:
        plan = self._plan
        if self._sizes is None:
            self._sizes = SizeFile(self._folder / SIZES, len(plan.data.axes))
        before = sum(entry.rows for entry in plan.inputs[:index] if entry.sizes)
        return self._sizes.read(before + start - self._starts[index], stop - start)

    def _reader(self, index: int) -> Reader:
        if self._open is None or self._open[0] != index:
            if self._open is not None:
                self._open[1].close()
            self._open = index, self._create_reader(index)
        return self._open[1]

    def _create_reader(self, index: int) -> Reader:
        plan, entry = self._plan, self._plan.inputs[index]
        if self._sums is None:
            self._sums = Digests(self._folder / SUMS)
        digest = self._sums.after(sum(map(_sum_count, plan.inputs[:index])))
        if entry.kind != "pictures":
            opener = functools.partial(open_verified, size=entry.bytes, digest=digest)
            if entry.kind == "array":
                return ArrayReader(entry.path, plan.data, opener)
            if entry.kind == "text":
                return TextReader(entry.path, plan.data, opener)
            if entry.kind == "table":
                return TableReader(entry.path, plan.data, entry.id_column, opener)
            columns = entry.column, entry.id_column
            return ParquetColumnReader(entry.path, plan.data, *columns, plan.fit, opener)
        if self._names is None:
            self._names = Names(self._folder / NAMES)
        all_names = self._names
        before = sum(i.rows for i in plan.inputs[:index] if i.kind == "pictures")
        return PictureReader(
            entry.path,
            lambda start, stop: all_names.read(before + start, before + stop),
            entry.rows,
            plan.data,
            plan.fit,
            digest,
        )


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How inputs are read.

    column, id_column: of tables, "": see ParquetColumnReader; fit: of images to the model's default
    size, one of pixels.FITS
    """

    column: str = ""
    id_column: str = ""
    fit: str = "refuse"


@dataclass(frozen=True, slots=True)
class _Described:
    """An input, its part of plan.sums, and its part of plan.sizes."""

    entry: Input
    digests: bytes
    sizes: bytes = b""


_Known = dict[tuple[str, str], _Described]
"""(path, stamp) of an input -> what the plan knows of it."""


def _read_known(known: Plan | None, folder: Path, model: ModelRows, options: ReadOptions) -> _Known:
    if known is None or not (folder / SUMS).exists():
        return {}
    if model.axes and (known.data, known.fit) != (model, options.fit):
        return {}  # rows have other sizes
    has_sizes = any(entry.sizes for entry in known.inputs)
    if has_sizes and not (folder / SIZES).exists():
        return {}
    found: _Known = {}
    with ExitStack() as stack:
        digests = stack.enter_context(closing(Digests(folder / SUMS)))
        lengths = (
            stack.enter_context(closing(SizeFile(folder / SIZES, len(model.axes))))
            if has_sizes
            else None
        )
        first = first_row = 0
        for entry in known.inputs:
            count, part = _sum_count(entry), b""
            if entry.sizes and lengths:
                part = lengths.read(first_row, entry.rows).tobytes()
                first_row += entry.rows
            described = _Described(entry, digests.read(first, count), part)
            found[entry.path, entry.stamp] = described
            first += count
    return found


def _sum_count(entry: Input) -> int:
    """The number of digests that an input has in plan.sums."""
    return entry.rows if entry.kind == "pictures" else verified.blocks(entry.bytes)


def _describe_file(
    source: Source, model: ModelRows, options: ReadOptions, known: _Known
) -> _Described:
    path, _ = file_and_key(source.path)
    size, stamp = files.size_and_stamp(path)
    before = known.get((source.path, stamp))
    columns = options.column, options.id_column
    with closing(sources.open_source(source, model, *columns, options.fit)) as reader:
        entry = Input("array", source.path, reader.rows, size, "", stamp=stamp)
        row_sizes = _RowSizes(model.default.key)
        if isinstance(reader, ParquetColumnReader):
            entry = replace(
                entry, kind="parquet column", column=reader.column, id_column=options.id_column
            )
            if before is not None and before.entry.column == reader.column:
                row_sizes = _RowSizes.of(before)
            elif model.axes and options.fit == "refuse":
                row_sizes = _RowSizes.find(reader.row_shapes(), model)
        elif isinstance(reader, TextReader):
            entry = replace(entry, kind="text")
        elif isinstance(reader, TableReader):
            entry = replace(entry, kind="table", id_column=options.id_column)
        elif isinstance(reader, ArrayReader):
            row_sizes = _RowSizes(reader.shapes.key)
    if before is not None:
        whole, digests = before.entry.sha256, before.digests
    else:
        whole, digests = verified.compute_digests(path)
    if len(digests) != DIGEST_BYTES * verified.blocks(size):
        raise BadData(f"{files.printable(path)} changed size while it was read. Retry.")
    return row_sizes.describe(replace(entry, sha256=whole), digests)


def _describe_pictures(
    source: Source, model: ModelRows, options: ReadOptions, known: _Known
) -> _Described:
    folder, names = source.path, source.names
    stamp, size = _stamp_pictures(folder, names)
    names_sum = hashlib.sha256(Names.to_bytes(names)).hexdigest()
    before = known.get((folder, stamp))
    if before is not None:
        whole, digests, row_sizes = before.entry.sha256, before.digests, _RowSizes.of(before)
    else:
        of_each = model if model.axes and options.fit == "refuse" else None
        whole, digests, shapes = _sum_pictures(folder, names, of_each)
        row_sizes = _RowSizes.find(shapes, model) if of_each else _RowSizes(model.default.key)
    entry = Input("pictures", folder, len(names), size, whole, names=names_sum, stamp=stamp)
    return row_sizes.describe(entry, digests)


@dataclass(frozen=True, slots=True)
class _RowSizes:
    """The size of all rows of an input, or its part of plan.sizes if they have several."""

    size: sizes.Size = ()
    several: bytes = b""

    @classmethod
    def find(cls, shapes: Iterable[RowShapes | None], model: ModelRows) -> Self:
        """Of rows with these shapes."""
        lengths = sizes.collect(shapes, len(model.axes))
        size = sizes.common(lengths)
        return cls(several=lengths.tobytes()) if size is None else cls(size or model.default.key)

    @classmethod
    def of(cls, known: _Described) -> Self:
        """Of an input that the plan knows."""
        return cls(known.entry.size, known.sizes)

    def describe(self, entry: Input, digests: bytes) -> _Described:
        """The input with its sizes."""
        several = hashlib.sha256(self.several).hexdigest() if self.several else ""
        return _Described(replace(entry, size=self.size, sizes=several), digests, self.several)


def _sum_pictures(
    folder: str, names: Sequence[str], model: ModelRows | None = None
) -> tuple[str, bytes, list[RowShapes | None]]:
    """The sha256 of all files together, and of each; for a model, also the shapes of each row, or
    None. A file that cannot be read raises nothing here: it becomes a bad row later."""
    total, digests, found = hashlib.sha256(), [], list[RowShapes | None]()
    for name in names:
        shapes = None
        try:
            with files.open_file(file_path(folder, name)) as file:
                if model:
                    shapes = _shapes_of(file, model)
                    file.seek(0)
                digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
        except BadData:
            digest = _UNREADABLE
        total.update(f"{name}\0{digest.hex()}\n".encode("utf-8", "surrogatepass"))
        digests.append(digest)
        found.append(shapes)
    return total.hexdigest(), b"".join(digests), found


def _shapes_of(file: BinaryIO, model: ModelRows) -> RowShapes | None:
    try:
        with images.pillow_warnings_ignored():
            return find_shapes(file, model, "refuse")
    except InvalidArgument:
        return None


def _stamp_pictures(folder: str, names: Sequence[str]) -> tuple[str, int]:
    """One stamp of all files together, and their total bytes."""
    stamps, total = hashlib.sha256(), 0
    for name in names:
        try:
            size, stamp = files.size_and_stamp(file_path(folder, name))
        except BadData:
            size, stamp = 0, "unreadable"
        stamps.update(f"{name}\0{size}\0{stamp}\n".encode("utf-8", "surrogatepass"))
        total += size
    return stamps.hexdigest(), total
