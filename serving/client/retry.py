"""Errors of failed calls, and whether and when a failed call is tried again."""

from __future__ import annotations

import random
import threading
import time
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


FIRST_WAIT: Final = 0.2  # seconds; doubled with each failure in a row
LONGEST_WAIT: Final = 5.0  # seconds
PATIENCE: Final = 8  # failures in a row, about 12 seconds, before rows already won are given up

MOST_TOKENS: Final = 200
TOKENS_PER_SUCCESS: Final = 0.2
"""Each failure costs a token, each success earns a fifth; under half: no retries, which would only
add to the load of servers that are all failing. The half is as many calls as may be under way at
one server when it goes, and still be tried elsewhere."""


class Throttle:
    """gRPC's throttling of retries (its proposal A6), for those that gRPC leaves to us."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: float = MOST_TOKENS

    def failed(self) -> bool:
        """Count a failure; whether it may be followed by another attempt."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0)
            return self._tokens > MOST_TOKENS / 2

    def succeeded(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(self._tokens + TOKENS_PER_SUCCESS, MOST_TOKENS)


class Backoff:
    """How long to wait after a call's failures, and when to give up."""

    def __init__(self, timeout: float | None, attempts: int, patient: bool = False) -> None:
        """timeout: seconds for all attempts; None: no deadline. attempts: at a call, or at a
        stream's beginning; one that has begun is given PATIENCE, unless attempts is 1. patient: an
        overloaded server, which says when to come back, is come back to until the deadline."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._attempts, self._patient = attempts, patient
        self._begun = False
        self._failures = 0  # in a row: any answer ends the row

    def remaining(self) -> float | None:
        """Seconds until the deadline of all attempts; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        """An answer of a stream has come."""
        self._begun, self._failures = True, 0

    def wait_after(self, error: LatentdError) -> float:
        """Seconds until the next attempt; raises `error` where there shall be none."""
        self._failures += 1
        most = PATIENCE if self._begun and self._attempts > 1 else self._attempts
        waits = self._patient and self._attempts > 1 and isinstance(error, Overloaded)
        if not (waits or (self._failures < most and isinstance(error, Unavailable | Overloaded))):
            raise error
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failures - 1))
        # Spread out: the callers of a server that went down should not come back in one wave.
        wait = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        if isinstance(error, Overloaded):
            wait = max(wait, error.retry_after)
        remaining = self.remaining()
        if remaining is not None and wait >= remaining:
            raise error
        return wait
