"""Where rows come from: digits, idx:DIR, npz:FILE, images:DIR, read whole into numpy arrays.

A source is a function from the text after the colon to `Arrays`; `SOURCES` names them all, and
adding one is adding a function there. What a source returns is checked in `training.data`, the
same for every source. Anything unreadable raises TrainingError that names the path.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from training.config import Config
from training.errors import TrainingError
from training.pictures import read_pictures

Array = npt.NDArray[Any]


class Arrays(NamedTuple):
    """What a source holds. x: (rows, *shape); y: one label for each row, or None."""

    x: Array
    y: Array | None = None
    x_test: Array | None = None  # the source's own test rows, where it has any
    y_test: Array | None = None


def read(config: Config) -> Arrays:
    """Read `config.data`. Raises TrainingError for an unknown source or an unreadable one."""
    scheme, _, where = config.data.partition(":")
    if scheme not in SOURCES:
        raise TrainingError(
            f"--data {config.data!r} is not a source: use digits, idx:DIR, npz:FILE or images:DIR."
        )
    if bool(where) == (scheme == "digits"):
        wanted = "digits, with nothing after it" if scheme == "digits" else f"{scheme}:PATH"
        raise TrainingError(f"--data {config.data!r} should read {wanted}.")
    return SOURCES[scheme](where, config)


def _digits(_: str, config: Config) -> Arrays:
    """scikit-learn's 1,797 bundled digits: (8, 8), bytes. Their 17 grey levels become 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Arrays(np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target)


def _idx(where: str, config: Config) -> Arrays:
    """The four files of MNIST by their own names, with or without .gz.

    Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, dimensions, sizes, data).
    """
    folder = Path(where)
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; idx:DIR names the folder of IDX files.")
    return Arrays(
        x=_read_idx(_either(folder, "train-images-idx3-ubyte"), dimensions=3),
        y=_read_idx(_either(folder, "train-labels-idx1-ubyte"), dimensions=1),
        x_test=_read_idx(_either(folder, "t10k-images-idx3-ubyte"), dimensions=3),
        y_test=_read_idx(_either(folder, "t10k-labels-idx1-ubyte"), dimensions=1),
    )


def _either(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise TrainingError(f"{folder} has neither {name}.gz nor {name}; idx:DIR needs all four files.")


def _read_idx(path: Path, dimensions: int) -> Array:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"{path} cannot be read ({error}); download it again.") from None
    start = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < start:
        raise TrainingError(
            f"{path} is no IDX file of unsigned bytes in {dimensions} dimensions "
            f"(it begins with {data[:4].hex(' ') or 'nothing'}); download it again."
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise TrainingError(
            f"{path} promises {math.prod(shape):,} bytes of data and holds "
            f"{len(data) - start:,}; download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _npz(where: str, config: Config) -> Arrays:
    """A .npy of rows, or an .npz with one array, x (and y), or x_train, x_test (and y_...)."""
    path = Path(where)
    try:
        with path.open("rb") as file:  # numpy leaves a damaged one open
            loaded = np.load(file, allow_pickle=False)  # a pickle could run code
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError:
        raise TrainingError(f"{path} does not exist; npz:FILE names a .npy or .npz file.") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # the bytes of a foreign file can make numpy raise anything
        objects = "Object arrays" in str(error)
        what = "holds Python objects" if objects else "is no .npy or .npz file, or is damaged"
        raise TrainingError(
            f"{path} {what}; write an array of numbers with numpy.save or numpy.savez."
        ) from None
    if len(arrays) == 1:
        return Arrays(next(iter(arrays.values())))
    if "x" in arrays:
        return Arrays(arrays["x"], arrays.get("y"))
    if "x_train" in arrays:
        return Arrays(
            arrays["x_train"], arrays.get("y_train"), arrays.get("x_test"), arrays.get("y_test")
        )
    raise TrainingError(
        f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; name the array of rows x, "
        "or x_train and x_test."
    )


def _images(where: str, config: Config) -> Arrays:
    """Every picture under a folder. See training.pictures."""
    return Arrays(read_pictures(Path(where), config.image_size))


SOURCES: Final[dict[str, Callable[[str, Config], Arrays]]] = {
    "digits": _digits,
    "idx": _idx,
    "npz": _npz,
    "images": _images,
}
