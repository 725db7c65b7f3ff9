"""What calls end with: the one place where errors become gRPC statuses."""

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
"""Everything else is INTERNAL: one fixed sentence for the caller, the whole story in the log."""

_MOST_TEXT: Final = 1000
"""Characters of a status: errors may quote what a caller sent, at any length."""

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(slots=True)  # not frozen: one is made for every call, and that is slow
class Status:
    """How a call ends; with OK perhaps the last message, which then travels in the same write."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    trailers: Metadata = ()
    message: bytes | None = None


def status(error: BaseException, method: str, request_id: str) -> Status:
    """What an error becomes for the caller."""
    code = STATUSES.get(type(error))
    if code is not None:
        text = str(error)[:_MOST_TEXT]
        return Status(code, text, _details(error, code, text))
    fields = {"request_id": request_id, "method": method}
    said = "%s failed, request id %s."
    log.error(said, method, request_id, exc_info=error, extra={"fields": fields})
    return Status(
        grpc.StatusCode.INTERNAL,
        f"The server failed on this request. Its log has more under request id {request_id}.",
    )


@functools.lru_cache(maxsize=1000)
def refused(wait: float) -> Status:
    """The end of a call that is not read, for it would wait so many seconds."""
    # Kept: under overload the same few are needed thousands of times a second.
    what = f"The wait would be about {wait:.2f} s and this call has less left"
    return status(Overloaded("admission", what, wait), "", "")


def _details(error: BaseException, code: grpc.StatusCode, text: str) -> Metadata:
    """The trailing metadata that says what a program can act on."""
    detail: Message
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=text.removeprefix(f"{error.field}: ")
        )
        detail = error_details_pb2.BadRequest(field_violations=[violation])
        pushback: Metadata = ()
    elif isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
        # What grpc clients with a retry policy obey by themselves.
        pushback = (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),)
    else:
        return ()
    packed = any_pb2.Any()
    packed.Pack(detail)
    number = code_pb2.Code.Value(code.name)
    rich = status_pb2.Status(code=number, message=text, details=[packed])
    return (("grpc-status-details-bin", rich.SerializeToString()), *pushback)
