"""Tensors of the protocol: datatypes, contents raw or typed, and their arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from latentd.codec import MAX_DIMENSIONS, Array
from latentd.errors import InvalidArgument
from latentd.open_inference import parameters
from latentd.open_inference.datatypes import BYTES, DATATYPES, INTEGERS, NAMES, NUMBERS, TYPED
from latentd.open_inference.operations import FIT
from latentd.pb import vae_pb2 as pb
from latentd.pb.open_inference_pb2 import ModelInferRequest

_MAX_UINT8: Final = 255
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
        if self.datatype not in TYPED:
            raise InvalidArgument(
                self.name,
                f"{self.datatype} has no typed contents",
                "Send it in raw_input_contents",
            )
        name, dtype = TYPED[self.datatype]
        elements = getattr(self.contents, name)
        self._check_count(len(elements), f"contents.{name}")
        values = np.array(elements, dtype)
        if self.datatype != "UINT8":
            return values.tobytes()
        if values.max(initial=0) > _MAX_UINT8:
            what = f"contents.{name} holds {values.max()}, beyond UINT8"
            raise InvalidArgument(self.name, what)
        return values.astype(np.uint8).tobytes()

    def integers(self, max_rows: int) -> Array:
        """uint64 of shape (rows,). Raises InvalidArgument."""
        dtype = INTEGERS.get(self.datatype)
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
        shape, axes = self.shape, len(self.shape)
        if axes != 1 and (axes != 2 or shape[1] != 1):
            raise InvalidArgument(f"{self.name}.shape", f"expected [rows, 1], got {list(shape)}")
        rows = shape[0]
        if not 1 <= rows <= max_rows:
            raise InvalidArgument(
                f"{self.name}.shape",
                f"{rows} rows sent; the limit is 1 to {max_rows} per request",
            )
        return rows

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
        if self.datatype == BYTES and not is_text:
            into.images.files.extend(self.elements(max_rows))
        elif into.HasField("images"):  # a parameter has set a field of it
            what = f"is for image files, and {self.name} holds none"
            raise InvalidArgument(f'parameters["{FIT}"]', what, "Leave it out")
        elif self.datatype == BYTES:
            into.text.texts.extend(self._texts(max_rows))
        else:
            self.write_tensor(into.tensor)

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
    tensors, raw = request.inputs, list(request.raw_input_contents)
    if raw and len(raw) != len(tensors):
        raise InvalidArgument(
            "raw_input_contents",
            f"{len(raw)} contents sent for {len(tensors)} inputs",
            "Send one for each of the inputs, or typed contents for all of them",
        )
    found: dict[str, Input] = {}
    for index, tensor in enumerate(tensors):
        name = tensor.name
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise InvalidArgument(f"{name}.shape", f"{len(tensor.shape)} lengths sent, too many")
        if name not in expected or name in found:
            what = "sent twice" if name in found else "this operation has no such input"
            raise _wrong_input(name, what, request, expected)
        if tensor.parameters:
            parameters.check_of_input(tensor.parameters, name, len(raw[index]) if raw else 0)
        if not raw:
            found[name] = Input(name, tensor.datatype, tensor.shape, None, tensor.contents)
        elif tensor.HasField("contents"):
            raise InvalidArgument(
                name,
                "has typed contents, and the request has raw_input_contents",
                "Send one or the other for all inputs",
            )
        else:
            found[name] = Input(name, tensor.datatype, tensor.shape, raw[index], None)
    for name in expected:
        if name not in found:
            raise _wrong_input(name, "missing", request, expected)
    return [found[name] for name in expected]


def _wrong_input(
    name: str, what: str, request: ModelInferRequest, expected: tuple[str, ...]
) -> InvalidArgument:
    hint = f"The inputs of {request.model_name} are: {', '.join(expected)}"
    return InvalidArgument(f'inputs["{name}"]', what, hint)


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
    data = np.array(numbers, NUMBERS[datatype]).tobytes()
    return Values(datatype, (len(numbers), 1), data)
