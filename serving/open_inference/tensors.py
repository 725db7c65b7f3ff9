"""Tensors of the protocol: datatypes, contents raw or typed, and their arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb
from latentd.pb.open_inference_pb2 import ModelInferRequest

DATATYPES: Final[dict[str, pb.DataType]] = {
    "UINT8": pb.DATA_TYPE_UINT8,
    "FP32": pb.DATA_TYPE_FLOAT32,
    "FP16": pb.DATA_TYPE_FLOAT16,
    "BF16": pb.DATA_TYPE_BFLOAT16,
}
"""The datatypes of x and z, as vae.v1 has them."""
NAMES: Final = {data_type: name for name, data_type in DATATYPES.items()}
BYTES: Final = "BYTES"

_INTEGERS: Final = {"UINT64": "<u8", "INT64": "<i8"}
"""The datatypes of seeds and row indices."""
_TYPED: Final = {
    "UINT8": ("uint_contents", "u1"),
    "FP32": ("fp32_contents", "<f4"),
    "UINT64": ("uint64_contents", "<u8"),
    "INT64": ("int64_contents", "<i8"),
}
"""The field of typed contents, and numpy's name of what it holds."""
_LENGTH_BYTES: Final = 4


class Input(NamedTuple):
    """One input, its elements not read yet.

    raw:      their bytes; None: the elements are in `contents`
    """

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | None
    contents: Any

    def data(self) -> bytes:
        """The elements of a tensor as raw contents. Raises InvalidArgument."""
        if self.raw is not None:
            return self.raw
        if self.datatype not in _TYPED:
            raise InvalidArgument(
                self.name,
                f"{self.datatype} has no typed contents",
                "Send it in raw_input_contents",
            )
        name, dtype = _TYPED[self.datatype]
        elements = getattr(self.contents, name)
        self._check_count(len(elements), f"contents.{name}")
        try:
            return np.array(elements, dtype).tobytes()
        except OverflowError:
            what = f"contents.{name} holds a number beyond {self.datatype}"
            raise InvalidArgument(self.name, what) from None

    def integers(self, max_rows: int) -> Array:
        """uint64 of shape (rows,). Raises InvalidArgument."""
        dtype = _INTEGERS.get(self.datatype)
        if dtype is None:
            raise self._wrong_datatype("UINT64")
        rows = self._rows(max_rows)
        data = self.data()
        if len(data) != rows * 8:
            raise self._wrong_size(rows * 8, len(data))
        values = np.frombuffer(data, dtype)
        if self.datatype == "INT64" and values.min() < 0:
            raise InvalidArgument(self.name, f"{values.min()} is negative", "Send 0 or more")
        return values.astype(np.uint64, copy=False)

    def elements(self, max_rows: int) -> list[bytes]:
        """The elements of a tensor of BYTES, one for each row. Raises InvalidArgument."""
        rows = self._rows(max_rows)
        if self.raw is None:
            elements = self.contents.bytes_contents
            self._check_count(len(elements), "contents.bytes_contents")
            return list(elements)
        raw, at, found = self.raw, 0, []
        for _ in range(rows):
            start = at + _LENGTH_BYTES
            at = start + int.from_bytes(raw[at:start], "little")
            found.append(raw[start:at])
        if at != len(raw):
            raise InvalidArgument(
                self.name,
                f"{len(raw)} bytes of raw contents do not hold {rows} element(s) of BYTES",
                "Send each element after its length in 4 little-endian bytes",
            )
        return found

    def _rows(self, max_rows: int) -> int:
        """The number of rows of a tensor with one element a row."""
        shape = list(self.shape)
        if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
            raise InvalidArgument(f"{self.name}.shape", f"expected [rows, 1], got {shape}")
        if not 1 <= shape[0] <= max_rows:
            raise InvalidArgument(
                f"{self.name}.shape",
                f"{shape[0]} rows sent; the limit is 1 to {max_rows} per request",
            )
        return shape[0]

    def _check_count(self, count: int, field: str) -> None:
        expected = math.prod(self.shape)
        if count != expected:
            what = f"expected {expected} elements in {field} for shape {list(self.shape)}"
            raise InvalidArgument(self.name, f"{what}, got {count}")

    def _wrong_datatype(self, expected: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self.name}.datatype", f"expected {expected}, got {self.datatype or 'none'}"
        )

    def _wrong_size(self, expected: int, got: int) -> InvalidArgument:
        what = f"expected {expected} bytes for shape {list(self.shape)} of {self.datatype}"
        return InvalidArgument(self.name, f"{what}, got {got}")

    def write_tensor(self, into: pb.Tensor) -> None:
        """Fill a message of vae.v1, whose method checks it. Raises InvalidArgument."""
        data_type = DATATYPES.get(self.datatype)
        if data_type is None:
            raise self._wrong_datatype(f"one of {', '.join(DATATYPES)}")
        into.dtype = data_type
        into.shape.extend(self.shape)
        into.data = self.data()

    def write_rows(self, into: pb.Rows, is_text: bool, max_rows: int) -> None:
        """Fill x: a tensor; or BYTES, a text or the file of an image a row. Raises
        InvalidArgument."""
        if self.datatype != BYTES:
            self.write_tensor(into.tensor)
        elif is_text:
            into.text.texts.extend(self._texts(max_rows))
        else:
            into.images.files.extend(self.elements(max_rows))

    def _texts(self, max_rows: int) -> list[str]:
        texts = []
        for row, element in enumerate(self.elements(max_rows)):
            try:
                texts.append(element.decode())
            except UnicodeDecodeError:
                raise InvalidArgument(
                    f"{self.name}[{row}]", "the text is not UTF-8", "Send its bytes as UINT8"
                ) from None
        return texts


def read_inputs(request: ModelInferRequest, expected: tuple[str, ...]) -> list[Input]:
    """The inputs with the expected names, in their order. Raises InvalidArgument."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            "raw_input_contents",
            f"{len(raw)} contents sent for {len(request.inputs)} inputs",
            "Send one for each of the inputs, or typed contents for all of them",
        )
    found: dict[str, Input] = {}
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        if name not in expected or name in found:
            what = "sent twice" if name in found else "this operation has no such input"
            hint = f"The inputs of {request.model_name} are: {', '.join(expected)}"
            raise InvalidArgument(f'inputs["{name}"]', what, hint)
        if tensor.parameters:
            refused = ", ".join(sorted(tensor.parameters))
            hint = "Send the contents in the request" if "shared_memory" in refused else ""
            raise InvalidArgument(name, f"parameters of inputs are not supported: {refused}", hint)
        if raw and tensor.HasField("contents"):
            raise InvalidArgument(
                name,
                "has typed contents, and the request has raw_input_contents",
                "Send one or the other for all inputs",
            )
        contents = None if raw else tensor.contents
        found[name] = Input(
            name, tensor.datatype, tensor.shape, raw[index] if raw else None, contents
        )
    for name in expected:
        if name not in found:
            raise InvalidArgument(
                f'inputs["{name}"]',
                "missing",
                f"The inputs of {request.model_name} are: {', '.join(expected)}",
            )
    return [found[name] for name in expected]


class Values(NamedTuple):
    """The values of one output; `data` as raw contents."""

    datatype: str
    shape: Sequence[int]
    data: bytes


def of_tensor(tensor: pb.Tensor) -> Values:
    """A tensor of vae.v1."""
    return Values(NAMES[tensor.dtype], tensor.shape, tensor.data)


def of_rows(rows: pb.Rows) -> Values:
    """x of a response of vae.v1: a tensor, or BYTES, a text or the file of an image a row."""
    content = rows.WhichOneof("content")
    if content == "tensor":
        return of_tensor(rows.tensor)
    if content == "text":
        elements = [text.encode() for text in rows.text.texts]
    else:
        elements = list(rows.images.files)
    parts = [part for one in elements for part in (len(one).to_bytes(_LENGTH_BYTES, "little"), one)]
    return Values(BYTES, (len(elements), 1), b"".join(parts))


def of_numbers(numbers: Sequence[Any], datatype: str) -> Values:
    """One number for each row."""
    data = np.array(numbers, _NUMBERS[datatype]).tobytes()
    return Values(datatype, (len(numbers), 1), data)


_NUMBERS: Final = {"FP32": "<f4", "UINT32": "<u4", "BOOL": "?"}
