"""Protocol messages to arrays and back, for both the service and the client.

Messages are checked: dtype, shape, byte count, finite values and range. Each fault raises an
InvalidArgument that names the field. No memory is allocated for a message before its check.
Floats of 16 bits become float32 as they are read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd import images, narrow_floats, ranges, texts
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb
from latentd.ranges import Counts

Array = NDArray[Any]

DATA_TYPES: Final[dict[str, pb.DataType]] = {
    "uint8": pb.DATA_TYPE_UINT8,
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
}
IMAGE_FORMATS: Final[dict[int, str]] = {
    pb.FORMAT_PNG: "PNG",
    pb.FORMAT_JPEG: "JPEG",
    pb.FORMAT_WEBP: "WEBP",
}
"""The formats that are image files, and Pillow's names of them."""
_FITS: Final[dict[int, str]] = {
    pb.FIT_UNSPECIFIED: "refuse",
    pb.FIT_REFUSE: "refuse",
    pb.FIT_RESIZE: "resize",
    pb.FIT_CROP: "crop",
}
NAMES: Final = {data_type: name for name, data_type in DATA_TYPES.items()}
_DATA_TYPE_OF_CHAR: Final = {
    "B": pb.DATA_TYPE_UINT8,
    "f": pb.DATA_TYPE_FLOAT32,
    "e": pb.DATA_TYPE_FLOAT16,
    "H": pb.DATA_TYPE_BFLOAT16,  # its bits
}  # by numpy's type character
_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
}
_NARROW: Final = (pb.DATA_TYPE_FLOAT16, pb.DATA_TYPE_BFLOAT16)
MAX_DIMENSIONS: Final = 16
"""More than any tensor has. The product of a million lengths would hold the GIL for minutes."""


def write_tensor(array: Array, into: pb.Tensor) -> None:
    """Fill a message with an array of uint8, float32, float16, or the bits of bfloat16 (uint16)."""
    into.dtype = _DATA_TYPE_OF_CHAR[array.dtype.char]
    into.shape.extend(array.shape)
    # The wire is little-endian.
    into.data = (array if sys.byteorder == "little" else array.byteswap()).tobytes()


def to_tensor(array: Array) -> pb.Tensor:
    """An array as a new message; see write_tensor."""
    tensor = pb.Tensor()
    write_tensor(array, tensor)
    return tensor


def from_tensor(tensor: pb.Tensor, field: str = "tensor") -> Array:
    """The message's array, a read-only view of its bytes; bfloat16 becomes float32.

    Raises InvalidArgument naming `field`.
    """
    data_type = tensor.dtype
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise InvalidArgument(
            f"{field}.dtype",
            f"unknown data type {tensor.dtype}",
            f"Send one of {', '.join(map(pb.DataType.Name, _DTYPES))}",
        )
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidArgument(f"{field}.shape", f"{len(shape)} lengths sent, too many")
    if min(shape, default=0) < 0:
        raise InvalidArgument(f"{field}.shape", f"{list(shape)} has a negative size")
    expected = math.prod(shape) * dtype.itemsize
    data = tensor.data
    if len(data) != expected:
        raise InvalidArgument(
            f"{field}.data",
            f"expected {expected} bytes for shape {list(shape)} and dtype {NAMES[tensor.dtype]}, "
            f"got {len(data)}",
            "Send the array in row-major order without padding",
        )
    try:
        array: Array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError:  # an empty array may have lengths that no array can have
        raise InvalidArgument(f"{field}.shape", f"{list(shape)} is too large") from None
    return narrow_floats.widened(array) if data_type == pb.DATA_TYPE_BFLOAT16 else array


def is_narrow(tensor: pb.Tensor) -> bool:
    """Whether its numbers are floats of 16 bits, which take time to become float32."""
    return tensor.dtype in _NARROW


def read_float_dtype(value: pb.DataType, field: str = "float_dtype") -> str:
    """The 16-bit format that a request asks for; "": float32. Raises InvalidArgument."""
    if value in (pb.DATA_TYPE_UNSPECIFIED, pb.DATA_TYPE_FLOAT32):
        return ""
    if value not in _NARROW:
        given = pb.DataType.Name(value) if value in pb.DataType.values() else str(value)
        raise InvalidArgument(
            field,
            f"{given} is not a format of floats",
            "Use DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT16 or DATA_TYPE_BFLOAT16",
        )
    return NAMES[value]


def narrowed(array: Array, name: str) -> Array:
    """The array as write_tensor sends it in a 16-bit format; bytes remain bytes.

    Raises InvalidArgument for a number that is too large for the format.
    """
    if array.dtype.char != "f":
        return array
    if beyond := rows_too_large(name, array):
        row, reason = next(iter(beyond.items()))
        raise InvalidArgument("float_dtype", f"row {row} {reason}", _hint(name))
    return narrow_floats.narrowed(array, name)


def rows_too_large(name: str, *arrays: Array | None) -> dict[int, str]:
    """The rows that a 16-bit format cannot hold, and why, by row."""
    found: dict[int, str] = {}
    for array in arrays:
        if array is None or array.dtype.char != "f" or not array.size:
            continue
        for row in np.flatnonzero(narrow_floats.too_large(array, name)).tolist():
            largest, limit = np.abs(array[row]).max(), narrow_floats.LARGEST[name]
            found.setdefault(row, f"holds {largest:g}, beyond the range of {name}, {limit:g}")
    return found


def _hint(name: str) -> str:
    return f"Use {'BFLOAT16 or ' if name == 'float16' else ''}FLOAT32"


def read_latents(tensor: pb.Tensor, shape: tuple[int, ...], max_rows: int, field: str) -> Array:
    """z, checked: float32 of shape (rows, *shape), finite, 1 to max_rows rows."""
    if not tensor.shape and not tensor.data:
        raise InvalidArgument(
            field, "missing", f"Send float32 of shape [rows, {_format_shape(shape)}]"
        )
    narrow = _check_signature(tensor, "float32", shape, max_rows, field)
    z = from_tensor(tensor, field)
    if narrow:
        z = z.astype(np.float32, copy=False)
    _check_finite(z, f"{field}.data")
    return z


def read_rows(rows: pb.Rows, x: DataSpec, max_rows: int, field: str) -> tuple[Array, Counts | None]:
    """x, checked: the model's dtype and shape, 1 to max_rows rows. Also how many values of each row
    lie outside the model's range; None: no value does."""
    if x.is_text:
        values, errors = _read_texts(rows, x, max_rows, field)
        for row, reason in errors.items():
            what = f"{field}.text.texts" if _content(rows, x, field) == "text" else field
            raise InvalidArgument(f"{what}[{row}]", reason, "See x_shape in GetModel")
        return values, None
    if _content(rows, x, field) == "images":
        fit = _check_images(rows.images, x, max_rows, f"{field}.images")
        return images.decode_files(rows.images.files, x, f"{field}.images.files", fit), None
    field = f"{field}.tensor"
    narrow = _check_signature(rows.tensor, x.dtype, x.shape, max_rows, field)
    values = from_tensor(rows.tensor, field)
    checked = ranges.check(_wide(values, rows.tensor, x) if narrow else values, x)
    for row, reason in checked.rejected.items():
        raise InvalidArgument(
            f"{field}.data", f"row {row} {reason}", "Scale the values like the training data"
        )
    return checked.values, checked.values_outside_range


def read_fit(files: pb.Images, field: str) -> str:
    """One of pixels.FITS. Raises InvalidArgument."""
    if files.fit not in _FITS:
        known = ", ".join(pb.Fit.keys()[1:])
        raise InvalidArgument(field, f"unknown enum value {files.fit}", f"Use one of {known}")
    return _FITS[files.fit]


def _check_images(files: pb.Images, x: DataSpec, max_rows: int, field: str) -> str:
    """The files' fit. Raises InvalidArgument for what needs no look at a file's pixels."""
    if not x.is_8bit_image:
        raise InvalidArgument(field, images.NO_IMAGES, "Send a tensor")
    fit = read_fit(files, f"{field}.fit")
    check_rows(len(files.files), max_rows, f"{field}.files")
    return fit


def decode_rows_lenient(
    rows: pb.Rows,
    x: DataSpec,
    max_rows: int,
    field: str,
    bad: Mapping[int, str] = MappingProxyType({}),
) -> tuple[Array, Counts | None, dict[int, str]]:
    """As read_rows, but a bad row does not reject the message: it is filled with the range's lowest
    value. Also returns why each bad row cannot be used, by row. Raises InvalidArgument for faults
    of the whole message.

    bad: image files that are known to be bad, by row
    """
    if x.is_text:
        values, errors = _read_texts(rows, x, max_rows, field)
        return values, None, errors
    errors = dict(bad)
    if _content(rows, x, field) == "images":
        files, fit = rows.images.files, _check_images(rows.images, x, max_rows, f"{field}.images")
        pixels = np.zeros((len(files), *x.shape), np.uint8)
        for row, file in enumerate(files):
            if row in errors:
                continue
            try:
                pixels[row] = images.decode_image(file, x, field, fit)
            except InvalidArgument as error:
                errors[row] = error.reason
        return pixels, None, errors
    narrow = _check_signature(rows.tensor, x.dtype, x.shape, max_rows, f"{field}.tensor")
    values = from_tensor(rows.tensor, f"{field}.tensor")
    checked = ranges.check(_wide(values, rows.tensor, x) if narrow else values, x)
    values = checked.values
    if checked.rejected:
        values = values.copy()
        # A row of zeros, where no value is the lowest: infinity would spoil its batch.
        values[list(checked.rejected)] = x.range[0] if math.isfinite(x.range[0]) else 0
    return values, checked.values_outside_range, checked.rejected


def _wide(values: Array, tensor: pb.Tensor, x: DataSpec) -> Array:
    """Floats of 16 bits as float32. A bound of the range that the 16-bit format rounds to a number
    outside is the bound again."""
    values = values.astype(np.float32, copy=False)
    for bound, outside in zip(x.range, (np.less, np.greater), strict=True):
        name = NAMES[tensor.dtype]
        if abs(bound) < narrow_floats.LIMITS[name]:
            bits = narrow_floats.narrowed(np.full(1, bound, np.float32), name)
            rounded = bits if name == "float16" else narrow_floats.widened(bits)
            if outside(float(rounded[0]), bound):
                values[values == rounded[0]] = bound
    return values


def _read_texts(
    rows: pb.Rows, x: DataSpec, max_rows: int, field: str
) -> tuple[Array, dict[int, str]]:
    """Texts as bytes, and why those that are empty in their place cannot be used, by row."""
    if _content(rows, x, field) == "tensor":
        _check_signature(rows.tensor, x.dtype, x.shape, max_rows, f"{field}.tensor")
        values = from_tensor(rows.tensor, f"{field}.tensor")
        errors = texts.faults(values)
        if errors:
            values = values.copy()
            values[list(errors)] = 0
        return values, errors
    check_rows(len(rows.text.texts), max_rows, f"{field}.text.texts")
    given = [text.encode() for text in rows.text.texts]
    found = {row: texts.fault(text, x.size) for row, text in enumerate(given)}
    errors = {row: why for row, why in found.items() if why}
    fitting = [b"" if row in errors else text for row, text in enumerate(given)]
    return texts.to_rows(fitting, x.size), errors


def _content(rows: pb.Rows, x: DataSpec, field: str) -> str:
    """Which kind of rows a message holds: tensor, images or text. Raises InvalidArgument."""
    content: str | None = rows.WhichOneof("content")
    if content and (content == "tensor" or (content == "text") == x.is_text):
        return content
    also = ", or image files" if x.is_8bit_image else ", or texts" if x.is_text else ""
    send = f"Send a tensor of {x.dtype} with shape [rows, {_format_shape(x.shape)}]{also}"
    if content is None:
        raise InvalidArgument(field, "missing", send)
    sent = "texts" if content == "text" else "image files"
    raise InvalidArgument(field, f"{sent} sent, and this model's rows are {x.plural}", send)


def write_rows(values: Array, form: pb.Format, into: pb.Rows) -> None:
    """Fill a message with x: a tensor, one image file per row, or texts. Filling in place avoids a
    copy of the pixels for each level of nesting."""
    if form in IMAGE_FORMATS:
        into.images.files.extend(images.encode_files(values, IMAGE_FORMATS[form]))
    elif form == pb.FORMAT_TEXT:
        into.text.texts.extend(texts.to_texts(values))
    else:
        write_tensor(values, into.tensor)


def to_rows(values: Array, form: pb.Format = pb.FORMAT_RAW) -> pb.Rows:
    """x as a new message."""
    rows = pb.Rows()
    write_rows(values, form, rows)
    return rows


def from_rows(rows: pb.Rows) -> Array | list[bytes] | list[str]:
    """The rows of a response: an array, the image files unchanged, or texts."""
    if rows.WhichOneof("content") == "text":
        return list(rows.text.texts)
    if rows.WhichOneof("content") == "images":
        return list(rows.images.files)
    return from_tensor(rows.tensor)


def read_format(value: pb.Format, x: DataSpec, field: str = "format") -> pb.Format:
    """The format that is requested. Raises InvalidArgument if the model's rows cannot have it."""
    if value in (pb.FORMAT_UNSPECIFIED, pb.FORMAT_RAW):
        return pb.FORMAT_RAW
    if value not in pb.Format.values():
        raise InvalidArgument(
            field, f"unknown enum value {value}", f"Use {', '.join(pb.Format.keys()[1:])}"
        )
    rows = f"this model's rows are {x.dtype} {x.plural} of shape [{_format_shape(x.shape)}]"
    if value == pb.FORMAT_TEXT and not x.is_text:
        raise InvalidArgument(field, f"only texts can be text; {rows}", "Use FORMAT_RAW")
    if value in IMAGE_FORMATS and not x.is_8bit_image:
        what = f"{IMAGE_FORMATS[value]} holds 8-bit gray or RGB images; {rows}"
        raise InvalidArgument(field, what, "Use FORMAT_RAW")
    return value


def _check_signature(
    tensor: pb.Tensor, dtype: str, row_shape: Sequence[int], max_rows: int, field: str
) -> bool:
    """Check dtype, row shape and number of rows; returns whether the floats have 16 bits. The bytes
    are not read."""
    differs = tensor.dtype != DATA_TYPES[dtype]
    if differs and not (dtype == "float32" and is_narrow(tensor)):
        raise InvalidArgument(
            f"{field}.dtype",
            f"expected {dtype}, got {NAMES.get(tensor.dtype, 'none')}",
            "Send the data in the model's dtype; see GetModel",
        )
    if len(tensor.shape) != len(row_shape) + 1 or tensor.shape[1:] != list(row_shape):
        raise InvalidArgument(
            f"{field}.shape",
            f"expected [rows, {_format_shape(row_shape)}], got {list(tensor.shape)}",
            rows_hint(len(tensor.shape), len(row_shape)),
        )
    check_rows(tensor.shape[0], max_rows, f"{field}.shape")
    return differs


def rows_hint(axes: int, row_axes: int) -> str:
    """What to do about a tensor with so many axes, if a row has `row_axes`; "": no hint."""
    return "The first axis counts the rows: send one row as row[None]" if axes == row_axes else ""


def check_rows(rows: int, max_rows: int, field: str) -> None:
    """Raises InvalidArgument unless a request may have so many rows."""
    if not 1 <= rows <= max_rows:
        raise InvalidArgument(
            field,
            f"{rows} rows sent; the limit is 1 to {max_rows} per request",
            "Send the rows in several requests" if rows > max_rows else "",
        )


def _check_finite(values: Array, field: str) -> None:
    if not np.isfinite(values).all():
        row = int(np.nonzero(~np.isfinite(values))[0][0])
        raise InvalidArgument(field, f"row {row} holds NaN or infinity", "Send finite numbers")


def _format_shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
