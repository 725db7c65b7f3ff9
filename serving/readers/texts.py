"""Read texts: the lines of a file, or what a table holds as strings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np

from latentd import texts
from latentd.bundle import DataSpec
from latentd.errors import BadData, ConfigError
from latentd.model_description import ModelDescription
from latentd.readers import files
from latentd.readers.files import FileOpener
from latentd.readers.rows import BadRow, Chunk

_BLOCK: Final = 1 << 20


class TextReader:
    """See rows.Reader. Each line is a row, also an empty one."""

    def __init__(
        self, path: str, model: ModelDescription, open_file: FileOpener = files.open_file
    ) -> None:
        self._path, self._x = path, model.default.x
        if not self._x.is_text:
            raise ConfigError(
                f"{files.printable(path)} holds texts; this model takes {self._x.plural} of "
                f"{self._x.dtype} {model.x.shape}."
            )
        self._file = open_file(path)
        self._starts = self._find_lines()
        self.rows: int = len(self._starts) - 1

    def read(self, start: int, stop: int) -> Chunk:
        first, last = int(self._starts[start]), int(self._starts[stop])
        self._file.seek(first)
        content = self._file.read(last - first)
        if len(content) != last - first:
            raise BadData(f"{files.printable(self._path)} ends before row {stop:,}. Copy it again.")
        offsets = self._starts[start : stop + 1] - first
        lines = [content[a:b] for a, b in itertools.pairwise(offsets)]
        lines = [line.removesuffix(b"\n").removesuffix(b"\r") for line in lines]
        return to_chunk(lines, list(map(str, range(start, stop))), start, self._x)

    def close(self) -> None:
        self._file.close()

    def _find_lines(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Where each line begins, and where the last one ends."""
        begin = len(texts.BYTE_ORDER_MARK)
        if self._file.read(begin) != texts.BYTE_ORDER_MARK:
            begin = 0
        self._file.seek(begin)
        starts, at = [np.array([begin], np.int64)], begin
        while block := self._file.read(_BLOCK):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts.append(ends.astype(np.int64) + at + 1)
            at += len(block)
        found = np.concatenate(starts)
        return found if found[-1] == at else np.append(found, at)  # a last line without its end


def to_chunk(given: Sequence[bytes | None], ids: Sequence[str], start: int, x: DataSpec) -> Chunk:
    """Texts as a chunk of rows numbered from `start`. Those that the model cannot take are bad."""
    bad, good = [], []
    for row, text in enumerate(given):
        reason = "no value" if text is None else texts.fault(text, x.size)
        if reason:
            bad.append(BadRow(start + row, ids[row], reason))
        else:
            good.append(row)
    values = texts.to_rows([given[row] or b"" for row in good], x.size)
    rows = np.array(good, np.int64) + start
    return Chunk(rows, [ids[row] for row in good], values, bad)
