"""Read image files, one row for each file, in the order of their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from latentd import images
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.readers import files, verified
from latentd.readers.rows import BadRow, Chunk

_MAX_BYTES: Final = 1 << 29
"""The maximum size of an image file. Larger files are not read into memory."""


class Names:
    """A list of file names on disk, one JSON string on each line. Memory holds only an offset of
    eight bytes for each name."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        lengths = np.fromiter((len(line) for line in self._file), np.int64)
        self._ends = np.cumsum(lengths)

    @staticmethod
    def to_bytes(names: Iterable[str]) -> bytes:
        return b"".join(json.dumps(name).encode() + b"\n" for name in names)

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, start: int, stop: int) -> list[str]:
        """Names start..stop."""
        begin = int(self._ends[start - 1]) if start else 0
        self._file.seek(begin)
        lines = self._file.read(int(self._ends[stop - 1]) - begin if stop > start else 0)
        return [json.loads(line) for line in lines.splitlines()]

    def close(self) -> None:
        self._file.close()


class PictureReader:
    """See rows.Reader. A file that is not an image of the model's size is a bad row, whatever error
    reading it raises.

    names: returns the names start..stop, relative to the folder; rows: number of names
    digest: returns the sha256 that a row's file must have; None: no check
    """

    def __init__(
        self,
        folder: str,
        names: Callable[[int, int], Sequence[str]],
        rows: int,
        x: DataSpec,
        resize: bool,
        digest: Callable[[int], bytes] | None = None,
    ) -> None:
        self._folder, self._names, self.rows, self._x = folder, names, rows, x
        self._resize, self._digest = resize, digest

    def read(self, start: int, stop: int) -> Chunk:
        names = self._names(start, stop)
        x = np.empty((len(names), *self._x.shape), np.uint8)
        good: list[int] = []
        bad: list[BadRow] = []
        for row, name in enumerate(names, start):
            try:
                with images.pillow_warnings_ignored():
                    x[len(good)] = self._read_image(row, name)
            except InvalidArgument as error:
                bad.append(BadRow(row, files.printable(name), error.reason))
            except Exception as error:
                if files.is_machine_error(error):
                    raise
                reason = f"cannot be read: {files.describe(error)}"
                bad.append(BadRow(row, files.printable(name), reason))
            else:
                good.append(row)
        ids = [files.printable(names[row - start]) for row in good]
        return Chunk(np.array(good, np.int64), ids, x[: len(good)], bad)

    def close(self) -> None:
        """Does nothing: the owner of `names` closes them."""

    def _read_image(self, row: int, name: str) -> images.Pixels:
        with files.open_file(files.join(self._folder, name) if self._folder else name) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InvalidArgument(
                name, f"larger than {_MAX_BYTES >> 20} MiB, the limit for an image"
            )
        if self._digest is not None:
            verified.check_digest(data, self._digest(row))
        return images.decode_image(data, self._x, name, None, self._resize)
