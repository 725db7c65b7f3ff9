"""Find the inputs that --input names, and read their rows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from latentd import images
from latentd.errors import BadData, ConfigError
from latentd.jobs.model_rows import ModelRows
from latentd.jobs.plan import Input, Plan
from latentd.readers import files, sources, verified
from latentd.readers.arrays import ArrayReader, file_and_key
from latentd.readers.parquet import TableReader
from latentd.readers.pictures import Names, PictureReader, file_path
from latentd.readers.rows import BadRow, Chunk, Reader
from latentd.readers.sources import Counts, Source
from latentd.readers.verified import DIGEST_BYTES, Digests, open_verified

PLAN: str = "plan.json"
NAMES: str = "plan.names"
SUMS: str = "plan.sums"
_UNREADABLE: Final = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The inputs that --input names.

    names:  the content of plan.names, the names of all images
    sums:   the content of plan.sums: for each input, the sha256 of every block of verified.BLOCK
            bytes, or of every image
    counts: number of files found, taken and left out
    """

    inputs: tuple[Input, ...]
    names: bytes
    sums: bytes
    counts: Counts

    def files(self) -> dict[str, bytes]:
        """The files that are stored with the plan, by name."""
        return {NAMES: self.names, SUMS: self.sums}


def find_inputs(
    patterns: Sequence[str],
    model: ModelRows,
    column: str,
    id_column: str,
    known: Plan | None,
    folder: Path,
) -> FoundInputs:
    """Find the inputs that `patterns` name, and compute their checksums.

    known: the plan in `folder`. The checksums of an input are reused if its stamp is unchanged;
    otherwise the input is read once. Raises ConfigError, BadData.
    """
    known_sums = _read_known_sums(known, folder)
    inputs: list[Input] = []
    names, sums, counts = b"", [], Counts()
    for pattern in patterns:
        for source in sources.find(pattern, counts, "--input"):
            if source.kind != "picture":
                entry, digests = _describe_file(source, model, column, id_column, known_sums)
            elif images.is_png_compatible(model.default.x):
                entry, digests, lines = _describe_pictures(source, known_sums)
                names += lines
            else:
                raise ConfigError(
                    f"--input {files.printable(pattern)} has images; this model takes "
                    f"{model.x.kind}s of {model.x.dtype} {model.x.shape}."
                )
            inputs.append(entry)
            sums.append(digests)
    if not sum(i.rows for i in inputs):
        raise ConfigError("--input has no rows.")
    return FoundInputs(tuple(inputs), names, b"".join(sums), counts)


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
    """Reads the rows of all inputs, numbered over the job. It keeps only the last input open."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._starts = [0, *accumulate(i.rows for i in plan.inputs)]
        self._open: tuple[int, Reader] | None = None
        self._names: Names | None = None
        self._sums: Digests | None = None

    def read(self, start: int, stop: int, max_rows: int) -> Iterator[Chunk]:
        """Rows start..stop in chunks of up to `max_rows` rows of one input each."""
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            shift = self._starts[index]
            end = min(start + max_rows, stop, self._starts[index + 1])
            chunk = self._reader(index).read(start - shift, end - shift)
            bad = [BadRow(row.row + shift, row.id, row.reason) for row in chunk.bad]
            yield dataclasses.replace(chunk, rows=chunk.rows + shift, bad=bad)
            start = end

    def close(self) -> None:
        for opened in (self._open and self._open[1], self._names, self._sums):
            if opened:
                opened.close()
        self._open = self._names = self._sums = None

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
            columns = entry.column, entry.id_column
            return TableReader(entry.path, plan.data, *columns, plan.resize, opener)
        if self._names is None:
            self._names = Names(self._folder / NAMES)
        all_names = self._names
        before = sum(i.rows for i in plan.inputs[:index] if i.kind == "pictures")
        return PictureReader(
            entry.path,
            lambda start, stop: all_names.read(before + start, before + stop),
            entry.rows,
            plan.data,
            plan.resize,
            digest,
        )


_KnownSums = dict[tuple[str, str], tuple[str, bytes]]
"""(path, stamp) of an input -> its sha256 and its part of plan.sums."""


def _read_known_sums(known: Plan | None, folder: Path) -> _KnownSums:
    if known is None or not (folder / SUMS).exists():
        return {}
    digests, found, first = Digests(folder / SUMS), {}, 0
    for entry in known.inputs:
        count = _sum_count(entry)
        found[entry.path, entry.stamp] = entry.sha256, digests.read(first, count)
        first += count
    digests.close()
    return found


def _sum_count(entry: Input) -> int:
    """The number of digests that an input has in plan.sums."""
    return entry.rows if entry.kind == "pictures" else verified.blocks(entry.bytes)


def _describe_file(
    source: Source, model: ModelRows, column: str, id_column: str, known_sums: _KnownSums
) -> tuple[Input, bytes]:
    path, _ = file_and_key(source.path)
    size, stamp = files.size_and_stamp(path)
    reader = sources.open_source(source, model, column, id_column)
    if isinstance(reader, TableReader):
        kind, columns = "table", (reader.column, id_column)
    else:
        kind, columns = "array", ("", "")
    rows = reader.rows
    reader.close()
    whole, digests = known_sums.get((source.path, stamp)) or verified.compute_digests(path)
    if len(digests) != DIGEST_BYTES * verified.blocks(size):
        raise BadData(f"{files.printable(path)} changed size while it was read. Retry.")
    return Input(kind, source.path, rows, size, whole, *columns, stamp=stamp), digests


def _describe_pictures(source: Source, known_sums: _KnownSums) -> tuple[Input, bytes, bytes]:
    """The input, its part of plan.sums, and its part of plan.names."""
    folder, names = source.path, source.names
    lines = Names.to_bytes(names)
    stamp, size = _stamp_pictures(folder, names)
    whole, digests = known_sums.get((folder, stamp)) or _sum_pictures(folder, names)
    names_sum = hashlib.sha256(lines).hexdigest()
    entry = Input("pictures", folder, len(names), size, whole, names=names_sum, stamp=stamp)
    return entry, digests, lines


def _sum_pictures(folder: str, names: Sequence[str]) -> tuple[str, bytes]:
    """The sha256 of all files together, and of each. A file that cannot be read raises nothing
    here: it becomes a bad row later."""
    total, digests = hashlib.sha256(), []
    for name in names:
        try:
            digest = files.sha256(file_path(folder, name))
        except BadData:
            digest = _UNREADABLE
        total.update(f"{name}\0{digest.hex()}\n".encode("utf-8", "surrogatepass"))
        digests.append(digest)
    return total.hexdigest(), b"".join(digests)


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
