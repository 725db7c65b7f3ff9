"""What an ONNX file would have its runtime read elsewhere: tensors whose data are in other files.

ONNX Runtime refuses some of the paths and follows others (a hard link, a file in the working
directory). A bundle's weights are inside its graphs, where the checksum covers them: so any such
tensor is refused, wherever it points, before the runtime sees the file.

The file is read as what it is, a protobuf message of onnx.proto, by the numbers of the few fields
on the way to a tensor: the server needs nothing else of the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from latentd.errors import BundleError

_INSIDE: Final[dict[str, dict[int, str]]] = {
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
"""Kind of message -> number of a field -> kind of the messages it holds."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_KEY, _VALUE = 1, 2  # of an entry of external data
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def refuse(model: bytes) -> None:
    """Raises BundleError(external) naming where a tensor's data would be. What is no ONNX at all is
    left to the runtime."""
    try:
        for tensor in _tensors(memoryview(model), "model"):
            _refuse(tensor)
    except (IndexError, RecursionError):  # cut off, or nested deeper than any graph
        return


def _tensors(message: memoryview, kind: str) -> Iterator[memoryview]:
    for number, value in _fields(message):
        inner = _INSIDE[kind].get(number)
        if inner is None or isinstance(value, int):
            continue
        if inner == "tensor":
            yield value
        else:
            yield from _tensors(value, inner)


def _refuse(tensor: memoryview) -> None:
    external, where = False, ""
    for number, value in _fields(tensor):
        if isinstance(value, int):
            external |= (number, value) == (_DATA_LOCATION, _EXTERNAL)
        elif number == _EXTERNAL_DATA:
            external = True
            said = {n: bytes(v) for n, v in _fields(value) if not isinstance(v, int)}
            if said.get(_KEY) == b"location":
                where = said.get(_VALUE, b"").decode(errors="replace")
    if external:
        raise BundleError(
            "external",
            f"A tensor's data would be read from {where!r}. Export the graph with its weights "
            "inside: a bundle has no other files.",
        )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field. Raises IndexError where the message ends within one."""
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
        # Anything else, a group of old for one, has no value of its own.
