"""What a caller may pass to the client, and its form on the wire."""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from serving import codec
from serving.codec import Array
from serving.errors import InvalidInput
from serving.pb import vae_pb2 as pb

PngFile: TypeAlias = bytes | str | os.PathLike[str]
"""A PNG file: its bytes, or its path."""
Data: TypeAlias = Array | Sequence[PngFile]
"""Rows of data: an array whose first axis counts them, or PNG files, one a row."""


@dataclass(frozen=True)
class DataPoint:
    """An end point that is data: one row (an array of x_shape), or one PNG file."""

    x: Array | PngFile


@dataclass(frozen=True)
class LatentPoint:
    """An end point that is a latent: floats of shape (latent size,)."""

    z: Array


@dataclass(frozen=True)
class SampledPoint:
    """An end point that is row `index` of sample(seed=seed)."""

    seed: int
    index: int = 0


EndPoint: TypeAlias = DataPoint | LatentPoint | SampledPoint


def seed(seed: int | None) -> int:
    """The seed; for None a new one, chosen here and not by the server, so that a call that is
    retried gives the same rows."""
    return secrets.randbits(64) if seed is None else whole("seed", seed, 64)


def whole(field: str, value: int, bits: int) -> int:
    """`value` as a whole number of at most so many bits. Raises InvalidInput naming the field."""
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise InvalidInput(field, f"{number} is out of range", f"Use 0 to 2^{bits} - 1")
    return number


def image_format(as_png: bool) -> pb.Format:
    """How rows are to come back."""
    return pb.FORMAT_PNG if as_png else pb.FORMAT_RAW


def rows(x: Data, field: str = "x") -> pb.Rows:
    """x as it is, or its PNG files; an OSError says which file cannot be read."""
    if isinstance(x, np.ndarray):
        return codec.to_rows(_wire_dtype(x, f"{field}.tensor.dtype"))
    if isinstance(x, bytes | str | os.PathLike):
        raise InvalidInput(field, "one file, where a list of files is due", "Wrap it in [ ]")
    return pb.Rows(png=pb.PngImages(files=[_png(file) for file in x]))


def _png(file: PngFile) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def latents(z: Array) -> pb.Tensor:
    """z, floats of any width, as float32."""
    return codec.to_tensor(np.asarray(z).astype(np.float32, copy=False))


def _wire_dtype(x: Array, field: str) -> Array:
    """Floats of any width travel as float32. Integers must be uint8: another might not fit."""
    if np.issubdtype(x.dtype, np.floating):
        return x.astype(np.float32, copy=False)
    if x.dtype != np.uint8:
        raise InvalidInput(
            field,
            f"{x.dtype} is neither uint8 nor a float",
            "Convert it with x.astype(np.uint8) or x.astype(np.float32), as the model was trained",
        )
    return x


def end_point(point: EndPoint, field: str) -> pb.EndPoint:
    """One end of an interpolation. Raises InvalidInput where it is none of the three."""
    match point:
        case DataPoint(x):
            row = x[None] if isinstance(x, np.ndarray) else [x]
            return pb.EndPoint(x=rows(row, f"{field}.x"))
        case LatentPoint(z):
            return pb.EndPoint(z=latents(np.asarray(z)[None]))
        case SampledPoint(seed, index):
            return pb.EndPoint(
                sample=pb.SampledPoint(
                    seed=whole(f"{field}.sample.seed", seed, 64),
                    index=whole(f"{field}.sample.index", index, 63),
                )
            )
    raise InvalidInput(
        field, f"a {type(point).__name__}", "Wrap it in DataPoint, LatentPoint or SampledPoint"
    )
