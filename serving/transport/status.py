"""The status that ends a call: the only place where errors become gRPC statuses."""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from latentd.calls.coroutines import Cancelled
from latentd.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

log = logging.getLogger(__name__)

STATUSES: Final[dict[type[BaseException], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Cancelled: grpc.StatusCode.CANCELLED,
}
"""Every other error is INTERNAL: a fixed sentence for the client, the traceback in the log."""

_MAX_DETAILS: Final = 1000
"""Characters of a status's details: errors may quote what a client sent, at any length."""

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(slots=True)  # not frozen: one is made for each call, and frozen ones are slower
class Status:
    """How a call ends.

    message: with OK, the last message, sent in the same write; None: there is none
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: Metadata = ()
    message: bytes | None = None


def status(error: BaseException, method: str, request_id: str) -> Status:
    """The status for an error."""
    code = STATUSES.get(type(error))
    if code is not None:
        details = str(error)[:_MAX_DETAILS]
        return Status(code, details, _error_details(error, code, details))
    fields = {"request_id": request_id, "method": method}
    message = "%s failed, request id %s."
    log.error(message, method, request_id, exc_info=error, extra={"fields": fields})
    return Status(
        grpc.StatusCode.INTERNAL,
        f"Internal error. See the server log for request id {request_id}.",
    )


@functools.lru_cache(maxsize=1000)
def overloaded(wait: float) -> Status:
    """The status of a call that is not read because it would wait so many seconds."""
    # Cached: under overload the same few are needed thousands of times a second.
    what = f"Estimated wait {wait:.2f} s exceeds the call's deadline"
    return status(Overloaded("admission", what, wait), "", "")


def _error_details(error: BaseException, code: grpc.StatusCode, details: str) -> Metadata:
    """Trailing metadata with google.rpc's error details, for programs to act on."""
    detail: Message
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=details.removeprefix(f"{error.field}: ")
        )
        detail = error_details_pb2.BadRequest(field_violations=[violation])
        pushback: Metadata = ()
    elif isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
        # gRPC clients with a retry policy wait as long by themselves.
        pushback = (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),)
    else:
        return ()
    packed = any_pb2.Any()
    packed.Pack(detail)
    number = code_pb2.Code.Value(code.name)
    rich = status_pb2.Status(code=number, message=details, details=[packed])
    return (("grpc-status-details-bin", rich.SerializeToString()), *pushback)
