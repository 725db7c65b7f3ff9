"""Read image files, one row for each file, in the order of their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from latentd import images
from latentd.bundle import RowShapes
from latentd.errors import InvalidArgument
from latentd.model_description import ModelDescription
from latentd.pixels import Pixels
from latentd.readers import files, verified
from latentd.readers.rows import BadRow, Chunk, check_same_size
from latentd.shapes import SizeError

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


def file_path(folder: str, name: str) -> str:
    """The path of an image; folder: "" if the name is the path."""
    return files.join(folder, name) if folder else name


def find_shapes(file: bytes | BinaryIO, model: ModelDescription, fit: str) -> RowShapes:
    """The shapes of the row that an image file gives, by its header. Raises InvalidArgument if the
    model does not take its size. fit: one of pixels.FITS"""
    if fit != "refuse" or not model.axes:
        return model.default
    height, width = images.height_and_width(file, "x")
    try:
        return model.shapes_of_x((height, width, *model.default.x.shape[2:]))
    except SizeError as error:
        default = model.default.x.shape
        other = (
            f"{images.FIT_OF_COMMAND} to bring every picture to {default[1]} x {default[0]} pixels "
            "(width x height)"
        )
        hint = f"{error.hint}. {other}" if error.hint else other
        raise InvalidArgument("x", error.what, hint) from None


def decode(data: bytes, model: ModelDescription, fit: str) -> Pixels:
    """The row that an image file gives. Raises InvalidArgument."""
    x = find_shapes(data, model, fit).x
    return images.decode_image(data, x, "x", fit, None, images.FIT_OF_COMMAND)


class PictureReader:
    """See rows.Reader. A file that is not an image of a size that the model takes is a bad row,
    whatever error reading it raises.

    names: returns the names start..stop, relative to the folder; rows: number of names
    fit: one of pixels.FITS
    digest: returns the sha256 that a row's file must have; None: no check
    """

    def __init__(
        self,
        folder: str,
        names: Callable[[int, int], Sequence[str]],
        rows: int,
        model: ModelDescription,
        fit: str,
        digest: Callable[[int], bytes] | None = None,
    ) -> None:
        self._folder, self._names, self.rows, self._model = folder, names, rows, model
        self._fit, self._digest = fit, digest

    def read(self, start: int, stop: int) -> Chunk:
        names = self._names(start, stop)
        pixels: list[Pixels] = []
        good: list[int] = []
        bad: list[BadRow] = []
        for row, name in enumerate(names, start):
            try:
                with images.pillow_warnings_ignored():
                    image = self._read_image(row, name)
                check_same_size(image.shape, (pixels or [image])[0].shape)
            except InvalidArgument as error:
                bad.append(BadRow(row, files.printable(name), error.reason))
            except Exception as error:
                if files.is_machine_error(error):
                    raise
                reason = f"cannot be read: {files.describe(error)}"
                bad.append(BadRow(row, files.printable(name), reason))
            else:
                good.append(row)
                pixels.append(image)
        ids = [files.printable(names[row - start]) for row in good]
        empty = np.empty((0, *self._model.default.x.shape), np.uint8)
        return Chunk(np.array(good, np.int64), ids, np.stack(pixels) if pixels else empty, bad)

    def close(self) -> None:
        """Does nothing: the owner of `names` closes them."""

    def _read_image(self, row: int, name: str) -> Pixels:
        with files.open_file(file_path(self._folder, name)) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InvalidArgument(
                name, f"larger than {_MAX_BYTES >> 20} MiB, the limit for an image"
            )
        if self._digest is not None:
            verified.check_digest(data, self._digest(row))
        return decode(data, self._model, self._fit)
