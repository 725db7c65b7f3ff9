"""The owner's own inputs and outputs, from an .npz file: what a bundle must give for them.

x, mean, log_var, z, decoded_x      as clients send and receive them, and as golden.npz has them
wide.x, wide.mean, ...              the same of rows of another size; any word before the dot
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from latentd.bundle import Manifest, RowShapes
from latentd.shapes import SizeError
from latentd.training.array import Array
from latentd.training.errors import TrainingError
from latentd.training.readers import arrays

NAMES: Final = ("x", "mean", "log_var", "z", "decoded_x")
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "x": ("mean",),
    "mean": ("x",),
    "log_var": ("x", "mean"),
    "z": ("decoded_x",),
    "decoded_x": ("z",),
}


@dataclass(frozen=True)
class Expected:
    """Rows of one size. Arrays of NAMES: x, mean and perhaps log_var; z and decoded_x; or all.

    name: of the rows, "" or a word before a dot
    """

    name: str
    arrays: Mapping[str, Array]

    def key(self, name: str) -> str:
        """An array's name in the file."""
        return f"{self.name}.{name}" if self.name else name


def read(path: Path, manifest: Manifest) -> tuple[Expected, ...]:
    """Read a file. Raises TrainingError, which names the array.

    manifest: of the model whose rows they are
    """
    groups: dict[str, dict[str, Array]] = {}
    for key, array in arrays.read_archive(path).items():
        group, _, name = key.rpartition(".")
        if name not in NAMES:
            raise TrainingError(
                f"{path} has an array {key}; expected {', '.join(NAMES)}, perhaps after a word "
                "and a dot."
            )
        groups.setdefault(group, {})[name] = array
    if not groups:
        raise TrainingError(f"{path} has no arrays; expected {', '.join(NAMES)}.")
    return tuple(Expected(name, _checked(path, name, g, manifest)) for name, g in groups.items())


def _checked(
    path: Path, group: str, given: Mapping[str, Array], manifest: Manifest
) -> dict[str, Array]:
    """The arrays of one size, in the types that the graphs have."""
    prefix = f"{group}." if group else ""
    sizes, counts, found = set[tuple[int, ...]](), dict[bool, int](), dict[str, Array]()
    for name, array in given.items():
        key = prefix + name
        for other in _NEEDS[name]:
            if other not in given:
                raise TrainingError(f"{path} has {key}, but not {prefix}{other}; give both.")
        if name not in (*manifest.encoder_outputs, "x", "z", "decoded_x"):
            raise TrainingError(f"{path} has {key}, but the latent is a point.")
        found[name], at = _typed(f"{path}: {key}", array, name in ("x", "decoded_x"), manifest)
        sizes.add(at.key)
        count = counts.setdefault(name in ("z", "decoded_x"), len(array))
        if len(array) != count or not count:
            raise TrainingError(f"{path}: {key} has {len(array)} rows; expected {count or 'some'}.")
    if len(sizes) > 1:
        raise TrainingError(
            f"{path}: {', '.join(prefix + name for name in given)} are of more than one size. "
            "Give rows of another size under names of their own, as in wide.x and wide.mean."
        )
    return found


def _typed(key: str, array: Array, is_x: bool, manifest: Manifest) -> tuple[Array, RowShapes]:
    """An array in its graph's type, and the size of its rows. Raises TrainingError."""
    dtype = np.dtype(manifest.default.x.dtype if is_x else np.float32)
    if array.dtype.kind != dtype.kind or (dtype == np.uint8 and array.dtype != dtype):
        raise TrainingError(f"{key} is {array.dtype}; expected {dtype}. {_AS_CLIENTS}")
    shapes_of = manifest.shapes_of_x if is_x else manifest.shapes_of_z
    try:
        return array.astype(dtype), shapes_of(array.shape[1:])
    except SizeError as error:
        form = (manifest.x if is_x else manifest.z).shape
        raise TrainingError(
            f"{key} has the shape {list(array.shape)}; expected rows of shape {form}: {error}. "
            + _AS_CLIENTS
        ) from None


_AS_CLIENTS: Final = (
    "All arrays are as clients have them: images in bytes, with height, width and channels in this "
    "order; latents in floats, channels first, after scale and shift."
)
