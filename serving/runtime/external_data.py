"""Rejects ONNX graphs with external data: tensors whose values are stored in other files.

ONNX Runtime rejects some of the paths and follows others (a hard link, a file in the working
directory). A bundle's weights are inside its graphs, where the checksum covers them. So this module
rejects any such tensor, with any path, before the runtime sees the file.

It reads the file as a protobuf message of onnx.proto, by the numbers of the few fields that lead to
a tensor: the server needs nothing else of the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from latentd.errors import BundleError

_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
        **{22: "sparse tensor", 23: "sparse tensor"},
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Kind of message -> field number -> kind of the messages in that field."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_KEY, _VALUE = 1, 2  # fields of an entry of external_data
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def reject(model: bytes) -> None:
    """Raise BundleError(external) with the path of the first external tensor. Bytes that are not an
    ONNX graph pass: the runtime rejects them."""
    try:
        for tensor in _tensors(memoryview(model), "model"):
            _reject_external(tensor)
    except (IndexError, RecursionError):  # truncated, or nested deeper than any graph
        return


def _tensors(message: memoryview, kind: str) -> Iterator[memoryview]:
    for number, value in _fields(message):
        inner = _CHILDREN[kind].get(number)
        if inner is None or isinstance(value, int):
            continue
        if inner == "tensor":
            yield value
        else:
            yield from _tensors(value, inner)


def _reject_external(tensor: memoryview) -> None:
    external, location = False, ""
    for number, value in _fields(tensor):
        if isinstance(value, int):
            external |= (number, value) == (_DATA_LOCATION, _EXTERNAL)
        elif number == _EXTERNAL_DATA:
            external = True
            entry = {n: bytes(v) for n, v in _fields(value) if not isinstance(v, int)}
            if entry.get(_KEY) == b"location":
                location = entry.get(_VALUE, b"").decode(errors="replace")
    if external:
        raise BundleError(
            "external",
            f"Tensor data is stored in the external file {location!r}. A bundle must embed all "
            "weights; export the graph without external data.",
        )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field. Raises IndexError if the message ends inside a field."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            yield number, varint()
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size = varint()
            if at + size > len(message):
                raise IndexError
            yield number, message[at : at + size]
            at += size
        # Other wire types, such as the deprecated groups, have no value of their own.
