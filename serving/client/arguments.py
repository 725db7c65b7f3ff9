"""What a caller may pass to the client, and its form on the wire."""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np

from latentd import codec
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb

PngFile: TypeAlias = bytes | str | os.PathLike[str]
"""A PNG file: its bytes, or its path."""


class SupportsArray(Protocol):
    """What numpy can make an array of: a torch tensor, a pandas table, an array of another kind."""

    def __array__(self) -> Array: ...


Data: TypeAlias = Array | SupportsArray | Sequence[PngFile]
"""Rows of data: an array whose first axis counts them, or PNG files, one a row."""


@dataclass(frozen=True)
class DataPoint:
    """An end point that is data: one row (an array of x_shape), or one PNG file."""

    x: Array | SupportsArray | PngFile


@dataclass(frozen=True)
class LatentPoint:
    """An end point that is a latent: floats of shape (latent size,)."""

    z: Array | SupportsArray


@dataclass(frozen=True)
class SampledPoint:
    """An end point that is row `index` of sample(seed=seed)."""

    seed: int
    index: int = 0


LatentAnchor: TypeAlias = DataPoint | LatentPoint | SampledPoint


def seed(seed: int | None) -> int:
    """The seed; for None a new one, chosen here and not by the server, so that a call that is
    retried gives the same rows."""
    return secrets.randbits(64) if seed is None else whole("seed", seed, 64)


def whole(field: str, value: int, bits: int) -> int:
    """`value` as an integer of at most so many bits. Raises InvalidArgument naming the field."""
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise InvalidArgument(field, f"{number} is out of range", f"Use 0 to 2^{bits} - 1")
    return number


def version(version: int) -> int:
    """The version asked for; 0: the newest. Raises InvalidArgument."""
    return whole("version", version, 32)


def image_format(as_png: bool) -> pb.Format:
    """How rows are to come back."""
    return pb.FORMAT_PNG if as_png else pb.FORMAT_RAW


def rows(x: Data, field: str = "x") -> pb.Rows:
    """x as it is, or its PNG files; an OSError says which file cannot be read."""
    if isinstance(x, bytes | str | os.PathLike):
        raise InvalidArgument(field, "one file, where a list of files is due", "Wrap it in [ ]")
    if is_array(x):
        return codec.to_rows(_wire_dtype(to_array(x, field), f"{field}.tensor.dtype"))
    sent: Any = x
    files = [_png(file, f"{field}[{index}]") for index, file in enumerate(sent)]
    return pb.Rows(png=pb.PngImages(files=files))


def is_array(x: Any) -> TypeGuard[Array | SupportsArray]:
    """Whether numpy can make an array of x without guessing."""
    return hasattr(x, "__array__") and not isinstance(x, np.generic)


def to_array(x: Any, field: str) -> Array:
    """x as a numpy array, without a copy if possible. Raises InvalidArgument with the reason that
    the library of x gives: a tensor is on a GPU, for instance, or needs gradients."""
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(field, f"cannot become an array: {str(error).rstrip('.')}") from None


def _png(file: Any, field: str) -> bytes:
    if isinstance(file, bytes):
        return file
    if isinstance(file, str | os.PathLike):
        return Path(file).read_bytes()
    raise InvalidArgument(
        field,
        f"a {type(file).__name__}",
        "Pass one array of all rows, or a list of PNG files (paths or bytes)",
    )


def latents(z: Array | SupportsArray, field: str = "z") -> pb.Tensor:
    """z, numbers of any width, as float32."""
    array = to_array(z, field)
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(field, f"{array.dtype} is not a number", "Pass floats")
    return codec.to_tensor(array.astype(np.float32, copy=False))


def _wire_dtype(x: Array, field: str) -> Array:
    """Floats of any width travel as float32. Integers must be uint8: another might not fit."""
    if np.issubdtype(x.dtype, np.floating):
        return x.astype(np.float32, copy=False)
    if x.dtype != np.uint8:
        raise InvalidArgument(
            field,
            f"{x.dtype} is neither uint8 nor a float",
            "Convert it with x.astype(np.uint8) or x.astype(np.float32), as the model was trained",
        )
    return x


def end_point(point: LatentAnchor, field: str) -> pb.LatentAnchor:
    """One end of an interpolation. Raises InvalidArgument where it is none of the three."""
    match point:
        case DataPoint(x):
            if is_array(x):
                return pb.LatentAnchor(x=rows(to_array(x, f"{field}.x")[None], f"{field}.x"))
            return pb.LatentAnchor(x=pb.Rows(png=pb.PngImages(files=[_png(x, f"{field}.x")])))
        case LatentPoint(z):
            return pb.LatentAnchor(z=latents(to_array(z, f"{field}.z")[None], f"{field}.z"))
        case SampledPoint(seed, index):
            return pb.LatentAnchor(
                sample=pb.SampledPoint(
                    seed=whole(f"{field}.sample.seed", seed, 64),
                    index=whole(f"{field}.sample.index", index, 63),
                )
            )
    raise InvalidArgument(
        field, f"a {type(point).__name__}", "Wrap it in DataPoint, LatentPoint or SampledPoint"
    )
