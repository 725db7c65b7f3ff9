"""What may be passed to the client's methods, and the request messages made from it."""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeGuard

import numpy as np

from latentd import codec
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb

FLOAT_DTYPES: Final = ("float32", "float16", "bfloat16")
"""What a response can hold. numpy has no bfloat16: such numbers become float32 in the result."""

ImageFile: TypeAlias = bytes | str | os.PathLike[str]
"""A PNG, JPEG or WebP file: its bytes, or its path."""

FORMATS: Final = {
    "": pb.FORMAT_RAW,
    "png": pb.FORMAT_PNG,
    "jpeg": pb.FORMAT_JPEG,
    "webp": pb.FORMAT_WEBP,
}
"""How rows are sent back: as an array, or as an image file for each row."""

FITS: Final = {
    "": pb.FIT_UNSPECIFIED,
    "refuse": pb.FIT_REFUSE,
    "resize": pb.FIT_RESIZE,
    "crop": pb.FIT_CROP,
}
"""What is done with image files of another size or other colors than the model's."""

TILINGS: Final = {
    "": pb.TILING_UNSPECIFIED,
    "when-needed": pb.TILING_WHEN_NEEDED,
    "always": pb.TILING_ALWAYS,
}
"""When large rows are run in tiles; "": never."""


class SupportsArray(Protocol):
    """Anything that numpy can convert to an array: a torch tensor, a pandas table."""

    def __array__(self) -> Array: ...


class Texts(list[str]):
    """Rows for a model of text: Texts(["one", "two"]). In a plain list, strings name
    image files."""


Data: TypeAlias = Array | SupportsArray | Sequence[ImageFile]
"""Rows of data: an array whose first axis is the rows, or image files, one for each row. All rows
of a call have one size. For a model of text: Texts. Where a model takes floats, a float16 array is
sent as it is."""


@dataclass(frozen=True)
class DataPoint:
    """One end of an interpolation, as data: one row (an array of x_shape), one image file, or
    Texts([text]). fit: of an image file, as of `encode`."""

    x: Array | SupportsArray | ImageFile | Texts
    fit: str = ""


@dataclass(frozen=True)
class LatentPoint:
    """One end of an interpolation, as a latent: floats of z_shape."""

    z: Array | SupportsArray


@dataclass(frozen=True)
class SampledPoint:
    """One end of an interpolation, as row `index` of sample(seed=seed)."""

    seed: int
    index: int = 0


LatentAnchor: TypeAlias = DataPoint | LatentPoint | SampledPoint


def seed(seed: int | None) -> int:
    """The seed. For None the client chooses one, so that a retried call returns the same rows."""
    return secrets.randbits(64) if seed is None else check_uint("seed", seed, 64)


def check_uint(field: str, value: int, bits: int) -> int:
    """`value` as an unsigned integer of `bits` bits. Raises InvalidArgument with the field."""
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise InvalidArgument(field, f"{number} is out of range", f"Use 0 to 2^{bits} - 1")
    return number


def version(version: int) -> int:
    """The requested version; 0: the newest. Raises InvalidArgument."""
    return check_uint("version", version, 32)


def image_format(name: str) -> pb.Format:
    """The format of the rows in the response. Raises InvalidArgument."""
    if name not in FORMATS:
        known = ", ".join(f'"{each}"' for each in FORMATS if each)
        raise InvalidArgument("format", f"unknown format {name!r}", f"Use one of {known}")
    return FORMATS[name]


def float_dtype(name: str) -> pb.DataType:
    """The floats of the response. Raises InvalidArgument."""
    if name not in FLOAT_DTYPES:
        raise InvalidArgument(
            "float_dtype", f"unknown dtype {name!r}", f"Use one of {', '.join(FLOAT_DTYPES)}"
        )
    return codec.DATA_TYPES[name]


def sizes(sizes: Mapping[str, int] | None) -> dict[str, int]:
    """The length of each free axis that is not to be the default. Raises InvalidArgument."""
    if not isinstance(sizes, Mapping | None):
        raise InvalidArgument(
            "sizes", f"unsupported type {type(sizes).__name__}", 'Pass {"h": 96, "w": 160}'
        )
    for name in sizes or {}:
        if not isinstance(name, str):
            raise InvalidArgument("sizes", f"{name!r} does not name an axis", 'Pass {"h": 96}')
    return {name: check_uint(f'sizes["{name}"]', n, 32) for name, n in (sizes or {}).items()}


def tiling(name: str) -> pb.Tiling:
    """Whether large rows are run in tiles. Raises InvalidArgument."""
    if name not in TILINGS:
        known = " or ".join(f'"{each}"' for each in TILINGS if each)
        raise InvalidArgument("tiling", f"unknown value {name!r}", f"Use {known}")
    return TILINGS[name]


def rows(x: Data, field: str = "x", fit: str = "") -> pb.Rows:
    """x as an array, or its image files and what is done with those of another size. Raises
    InvalidArgument, OSError for an unreadable file."""
    if fit not in FITS:
        known = ", ".join(f'"{each}"' for each in FITS if each)
        raise InvalidArgument("fit", f"unknown value {fit!r}", f"Use one of {known}")
    if fit and (isinstance(x, Texts) or is_array(x)):
        raise InvalidArgument("fit", "only image files are made to fit", "Leave it out")
    if isinstance(x, bytes | str | os.PathLike):
        raise InvalidArgument(field, "expected a list of files, got one file", "Wrap it in [ ]")
    if isinstance(x, Texts):
        return _texts(x, f"{field}.text.texts")
    if is_array(x):
        return codec.to_rows(_wire_dtype(to_array(x, field), f"{field}.tensor.dtype"))
    given: Any = x
    if not isinstance(given, Iterable):
        raise InvalidArgument(
            field,
            f"unsupported type {type(given).__name__}",
            "Pass one array of all rows (of an image, numpy.asarray(image)[None]), or a list of "
            "image files (paths or bytes)",
        )
    files = [_file(file, f"{field}[{index}]") for index, file in enumerate(given)]
    return pb.Rows(images=pb.Images(files=files, fit=FITS[fit]))


def count(x: pb.Rows) -> int:
    """How many rows there are."""
    content = x.WhichOneof("content")
    if content == "images":
        return len(x.images.files)
    if content == "text":
        return len(x.text.texts)
    return x.tensor.shape[0] if x.tensor.shape else 0


def _texts(x: Texts, field: str) -> pb.Rows:
    for row, text in enumerate(x):
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            is_text = isinstance(text, str)
            what = str(error) if is_text else f"{type(text).__name__} is not str"
            hint = "Send other bytes than UTF-8 as an array" if is_text else "Pass Texts of str"
            raise InvalidArgument(f"{field}[{row}]", what, hint) from None
    return pb.Rows(text=pb.Texts(texts=x))


def is_array(x: Any) -> TypeGuard[Array | SupportsArray]:
    """Whether numpy can convert x to an array without guessing."""
    return hasattr(x, "__array__") and not isinstance(x, np.generic)


def to_array(x: Any, field: str) -> Array:
    """x as a numpy array, without a copy if possible. Raises InvalidArgument with the reason of
    x's library: for example, a tensor is on a GPU or requires gradients."""
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            field, f"cannot be converted to an array: {str(error).rstrip('.')}"
        ) from None


def _file(file: Any, field: str) -> bytes:
    if isinstance(file, bytes):
        return file
    if isinstance(file, str | os.PathLike):
        try:
            return Path(file).read_bytes()
        except FileNotFoundError as error:
            error.add_note("A string names an image file. For a model of text, pass Texts([...]).")
            raise
    raise InvalidArgument(
        field,
        f"unsupported type {type(file).__name__}",
        "Pass one array of all rows, or a list of image files (paths or bytes)",
    )


def latents(z: Array | SupportsArray, field: str = "z") -> pb.Tensor:
    """z, numbers of any width, as float32; float16 remains float16. Raises InvalidArgument."""
    array = to_array(z, field)
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(field, f"{array.dtype} is not a numeric dtype", "Pass floats")
    return codec.to_tensor(_wire_float(array))


def _wire_float(array: Array) -> Array:
    narrow = array.dtype.kind == "f" and array.dtype.itemsize == 2
    return array.astype(np.float16 if narrow else np.float32, copy=False)


def _wire_dtype(x: Array, field: str) -> Array:
    """Wider floats are sent as float32. Integers must be uint8: others may not fit."""
    if np.issubdtype(x.dtype, np.floating):
        return _wire_float(x)
    if x.ndim == 1 and x.size and isinstance(x[0], str):
        raise InvalidArgument(field, "strings are not numbers", "Texts go in Texts(list of str)")
    if x.dtype != np.uint8:
        raise InvalidArgument(
            field,
            f"{x.dtype} is neither uint8 nor a float",
            "Convert it with x.astype(np.uint8) or x.astype(np.float32), as the model was trained; "
            "a table with get_model().to_rows(table)",
        )
    return x


def latent_anchor(point: LatentAnchor, field: str) -> pb.LatentAnchor:
    """One end of an interpolation. Raises InvalidArgument for any other type."""
    match point:
        case DataPoint(x, fit):
            if isinstance(x, Texts):
                return pb.LatentAnchor(x=rows(x, f"{field}.x", fit))
            if is_array(x):
                return pb.LatentAnchor(x=rows(to_array(x, f"{field}.x")[None], f"{field}.x", fit))
            return pb.LatentAnchor(x=rows([_file(x, f"{field}.x")], f"{field}.x", fit))
        case LatentPoint(z):
            return pb.LatentAnchor(z=latents(to_array(z, f"{field}.z")[None], f"{field}.z"))
        case SampledPoint(seed, index):
            return pb.LatentAnchor(
                sample=pb.SampledPoint(
                    seed=check_uint(f"{field}.sample.seed", seed, 64),
                    index=check_uint(f"{field}.sample.index", index, 63),
                )
            )
    raise InvalidArgument(
        field,
        f"unsupported type {type(point).__name__}",
        "Wrap it in DataPoint, LatentPoint or SampledPoint",
    )
