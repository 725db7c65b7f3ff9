"""A failed call as an error of `latentd.errors`: `latentd.transport.status` read backwards."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from latentd.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LatentdError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)

_PROXY: Final = (
    "The connection goes through the HTTP proxy in the environment variable {}; "
    "add the host to no_proxy if it must not."
)


class ServiceError(LatentdError):
    """Any other failure of a call. code: the gRPC status by name, e.g. "INTERNAL"."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def from_rpc(error: grpc.RpcError, target: str, proxy_variable: str = "") -> LatentdError:
    """What `error`, of a call to `target`, says; raise the result `from error`.

    proxy_variable: the environment variable whose proxy the call goes through; empty: none.
    """
    call: Any = error  # both libraries' errors are calls too: code, details, trailers
    code: grpc.StatusCode = call.code()
    said: str = call.details() or ""
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return _invalid_input(call, said)
        case grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(said)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _exhausted(call, said)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{target} did not answer before the deadline ({said.rstrip('.')}). "
                "Allow more time with timeout=, or ask for fewer rows."
            )
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                f"{target} cannot take calls now ({said.rstrip('.')})."
                + (f" {_PROXY.format(proxy_variable)}" if proxy_variable else "")
            )
    return ServiceError(code.name, f"{target} answered {code.name}: {said.rstrip('.')}.")


def _invalid_input(call: Any, said: str) -> InvalidArgument:
    bad = _detail(call, error_details_pb2.BadRequest)
    if bad is None or not bad.field_violations:
        return InvalidArgument("request", said.rstrip("."))
    violation = bad.field_violations[0]
    return InvalidArgument(violation.field, violation.description.rstrip("."))


def _exhausted(call: Any, said: str) -> LatentdError:
    """Overloaded only where the server says when to come back: waiting shrinks no message."""
    retry = _detail(call, error_details_pb2.RetryInfo)
    if retry is None:
        return ServiceError(
            "RESOURCE_EXHAUSTED",
            f"A limit was passed that waiting does not lift ({said.rstrip('.')}). Send or ask for "
            "fewer rows a call; get_model().limits says how many bytes a message may have.",
        )
    delay = retry.retry_delay
    return Overloaded(
        "",  # why is the server's own to know
        said.partition(" Retry in ")[0].rstrip("."),  # Overloaded says the time itself
        delay.seconds + delay.nanos / 1e9,
    )


def _detail(call: Any, kind: Any) -> Any:
    """The google.rpc detail of this kind, or None."""
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # a proxy rewrote the status: its details are another's
        return None
    for packed in status.details if status is not None else ():
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    return None
