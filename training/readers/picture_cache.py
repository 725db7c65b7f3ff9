"""The decoded pictures of a run, in files beside it: decoded once, then mapped into memory.

OUT/pictures/pixels.npy     uint8 (rows, height, width[, 3])
             labels.npy     int64 (rows,), if the folders' names are labels
             pictures.json  what they were made from: other files or settings make them again
             left_out.txt   the files that cannot be used, one a line, with the reasons
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from latentd.training.errors import TrainingError
from latentd.training.files import printable
from latentd.training.machine import format_bytes
from latentd.training.readers.image_folder import Allocate, Pictures
from latentd.training.readers.picture import Pixels

FOLDER: Final = "pictures"
_PIXELS: Final = "pixels.npy"
_LABELS: Final = "labels.npy"
_RECORD: Final = "pictures.json"
_LEFT_OUT: Final = "left_out.txt"
_LOCK: Final = ".lock"
_WRITING: Final = ".{}.writing"


class PictureCache:
    """The decoded pictures of the run in a folder."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER

    @classmethod
    def beside(cls, checkpoint: Path) -> Path | None:
        """The run's folder, if pictures are kept there and may be replaced; otherwise None."""
        folder = checkpoint.parent / FOLDER
        kept = (folder / _RECORD).exists() and os.access(folder, os.W_OK)
        return checkpoint.parent if kept else None

    def pictures(self, key: str, make: Callable[[Allocate], Pictures]) -> Pictures:
        """The pictures of this key. If the files hold others, or none, `make` makes them.

        key: of the pictures' files and all settings. Of several processes one makes them, and the
        others wait. Raises TrainingError if they cannot be made or written.
        """
        with self._locked():
            if found := self._read(key):
                return found
            made = make(self._allocate)
            self._write(key, made)
            return self._read(key) or made

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out. After a TrainingError, a folder that was made is removed."""
        created = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    yield
                finally:
                    self._file(_WRITING.format(_PIXELS)).unlink(missing_ok=True)
        except OSError as error:
            self._remove(created)
            raise TrainingError(
                f"{printable(self._folder)} cannot be written: {error.strerror or error}."
            ) from None
        except TrainingError:
            self._remove(created)
            raise

    def _remove(self, created: list[Path]) -> None:
        if self._folder in created:
            shutil.rmtree(self._folder, ignore_errors=True)
        for path in created:
            with contextlib.suppress(OSError):  # not empty, or gone
                path.rmdir()

    def _file(self, name: str) -> Path:
        return self._folder / name

    def _read(self, key: str) -> Pictures | None:
        try:
            record = json.loads(self._file(_RECORD).read_text())
            if record["key"] != key:
                return None
            # Read only: for pages that may be written, the kernel would ask for as much memory.
            pixels = np.load(self._file(_PIXELS), mmap_mode="r", allow_pickle=False)
            pixels = pixels[: record["rows"]]
            labels = np.load(self._file(_LABELS), allow_pickle=False) if record["labels"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Pictures(pixels, labels, tuple(record["classes"]), tuple(record["notes"]))

    def _allocate(self, shape: tuple[int, ...]) -> Pixels:
        """An array in a new file, because another process may have mapped the old one."""
        needed, free = math.prod(shape), shutil.disk_usage(self._folder).free
        if needed > free:
            raise TrainingError(
                f"{printable(self._folder)} needs {format_bytes(needed)} for decoded pictures, and "
                f"the disk has {format_bytes(free)}. Use a smaller --image-size or another --out."
            )
        writing = self._file(_WRITING.format(_PIXELS))
        writing.unlink(missing_ok=True)
        return np.lib.format.open_memmap(writing, "w+", np.uint8, shape)

    def _write(self, key: str, made: Pictures) -> None:
        """The record comes last: without it, the other files are ignored."""
        self._file(_RECORD).unlink(missing_ok=True)
        assert isinstance(made.pixels, np.memmap)
        made.pixels.flush()
        self._file(_WRITING.format(_PIXELS)).replace(self._file(_PIXELS))
        if made.labels is not None:
            np.save(self._file(_LABELS), made.labels)
        record = {
            "key": key,
            "rows": len(made.pixels),  # damaged pictures leave rows after these
            "labels": made.labels is not None,
            "classes": made.classes,
            "notes": [*made.notes, *self._list(made.left_out)],
        }
        writing = self._file(_WRITING.format(_RECORD))
        with writing.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(self._file(_RECORD))

    def _list(self, left_out: Sequence[str]) -> list[str]:
        """Write the list of files that cannot be used. Returns a sentence about it, if any are."""
        path = self._file(_LEFT_OUT)
        path.unlink(missing_ok=True)
        if not left_out:
            return []
        path.write_text("".join(f"{line}\n" for line in left_out))
        return [f"{printable(path)} lists all files that cannot be used: {len(left_out):,}."]
