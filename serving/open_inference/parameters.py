"""Parameters of a request: those of the protocol, and fields of vae.v1's request."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from latentd.calls.context import CallContext
from latentd.errors import InvalidArgument
from latentd.open_inference.datatypes import DATATYPES
from latentd.open_inference.operations import FIT, SIZES, Operation
from latentd.pb.open_inference_pb2 import InferParameter
from latentd.pb.vae_pb2 import DataType

Parameters = Mapping[str, InferParameter]
Value = bool | int | float | str

_REFUSED: Final = {
    "shared_memory_region": "this server does not share memory with its clients",
    "shared_memory_byte_size": "this server does not share memory with its clients",
    "shared_memory_offset": "this server does not share memory with its clients",
    "classification": "the operations of a VAE do not classify",
}
"""Reserved names that a request may not have, and why."""
_SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")
_WITHOUT_EFFECT: Final = ("triton_enable_empty_final_response", "binary_data_output")
"""There is one response, the final one, and its contents are raw."""
_PROTOCOL: Final = frozenset((*_REFUSED, *_SEQUENCE, *_WITHOUT_EFFECT, "timeout", "priority"))
_DIGITS: Final = re.compile("[0-9]{1,20}")
_FLOATS: Final = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


def apply(parameters: Parameters, operation: Operation, request: Any, context: CallContext) -> None:
    """Set the fields of vae.v1's request that parameters name, and what concerns the call itself:
    its deadline and priority. Raises InvalidArgument."""
    for name, parameter in parameters.items():
        field = f'parameters["{name}"]'
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument(field, "has no value")
        value: Value = getattr(parameter, choice)
        if name in _PROTOCOL:
            _apply_to_call(name, value, field, context)
        elif name.startswith(f"{SIZES}.") and SIZES in operation.parameters:
            _set_size(request, name.removeprefix(f"{SIZES}."), value, field)
        elif name in operation.parameters and name != SIZES:
            _set(request.x.images if name == FIT else request, name, value, field)
        else:
            known = [f"{SIZES}.AXIS" if one == SIZES else one for one in operation.parameters]
            raise InvalidArgument(
                field,
                "unknown parameter",
                f"This operation has: {', '.join((*known, 'timeout', 'priority'))}",
            )


def check_of_input(parameters: Parameters, field: str, raw_bytes: int) -> None:
    """Check the parameters of an input. The protocol over HTTP has one, which KServe's client also
    sends over gRPC: the number of bytes of its raw contents. Raises InvalidArgument.

    raw_bytes: the number that it must be
    """
    _check_of_tensor(parameters, field, "binary_data_size")
    for parameter in parameters.values():
        if (size := parameter.int64_param) != raw_bytes:
            what = f"{raw_bytes} bytes of raw contents sent, and binary_data_size is {size}"
            raise InvalidArgument(field, what)


def check_of_output(parameters: Parameters, field: str) -> None:
    """Check the parameters of a requested output. Whether its contents shall be raw has no effect:
    they are. Raises InvalidArgument."""
    _check_of_tensor(parameters, field, "binary_data")


def _check_of_tensor(parameters: Parameters, field: str, allowed: str) -> None:
    for name in parameters:
        if name != allowed:
            reason = _REFUSED.get(name, "unknown parameter")
            raise InvalidArgument(f'{field}.parameters["{name}"]', reason, "Leave it out")


def _apply_to_call(name: str, value: Value, field: str, context: CallContext) -> None:
    if reason := _REFUSED.get(name):
        raise InvalidArgument(field, f"not supported: {reason}", "Leave it out")
    if name in _SEQUENCE:
        if value:
            what = "not supported: requests do not depend on each other"
            raise InvalidArgument(field, what, "Leave sequences out")
    elif name == "timeout":
        microseconds = _integer(value, field)
        if microseconds:
            context.deadline = min(context.deadline, time.monotonic() + microseconds / 1e6)
    elif name == "priority":
        context.background = context.background or _integer(value, field) > 1


def _set_size(request: Any, axis: str, value: Value, field: str) -> None:
    length = _integer(value, field)
    try:
        request.sizes[axis] = length
    except ValueError:
        raise InvalidArgument(field, f"{length} is too large") from None


def _set(request: Message, name: str, value: Value, field: str) -> None:
    """Set one field of the request."""
    described = request.DESCRIPTOR.fields_by_name[name]
    if described.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(value, bool):
            raise InvalidArgument(field, f"expected a bool, got {value!r}")
    elif described.type == FieldDescriptor.TYPE_ENUM:
        value = _enum_number(described.enum_type, value, field)
    elif described.type in _FLOATS:
        if isinstance(value, bool | str):
            raise InvalidArgument(field, f"expected a number, got {value!r}")
    else:
        value = _integer(value, field)
    try:
        setattr(request, name, value)
    except ValueError:
        raise InvalidArgument(field, f"{value} is too large") from None


def _integer(value: Value, field: str) -> int:
    """A number, or its digits: clients have no parameter for one of 2^63 or more."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(field, f"expected an integer of 0 or more, got {value!r}")
    return value


def _enum_number(enum: Any, value: Value, field: str) -> int:
    """The number of an enum's value by its name, without the enum's prefix and in any case: png.
    Data types have the protocol's names."""
    if enum is DataType.DESCRIPTOR:
        names: Mapping[str, int] = DATATYPES
    else:
        prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
        names = {one.name.removeprefix(prefix): one.number for one in enum.values[1:]}
    number = names.get(value.upper()) if isinstance(value, str) else None
    if number is None:
        expected = ", ".join(names if enum is DataType.DESCRIPTOR else map(str.lower, names))
        raise InvalidArgument(field, f"expected one of {expected}, got {value!r}")
    return number
