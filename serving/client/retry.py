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
    """The LatentdError for `error`, from a call to `target`; raise it `from error`.

    proxy_variable: the environment variable that names the call's proxy; empty: no proxy.
    """
    call: Any = error  # both libraries' errors are calls too: code, details, trailers
    code: grpc.StatusCode = call.code()
    details: str = call.details() or ""
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return _invalid_argument(call, details)
        case grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(details)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _exhausted(call, details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{target} did not answer before the deadline ({details.rstrip('.')}). "
                "Increase timeout=, or request fewer rows."
            )
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                f"{target} is unavailable ({details.rstrip('.')})."
                + (f" {_PROXY.format(proxy_variable)}" if proxy_variable else "")
            )
    return ServiceError(code.name, f"{target} returned {code.name}: {details.rstrip('.')}.")


def _invalid_argument(call: Any, details: str) -> InvalidArgument:
    bad = _detail(call, error_details_pb2.BadRequest)
    if bad is None or not bad.field_violations:
        return InvalidArgument("request", details.rstrip("."))
    violation = bad.field_violations[0]
    return InvalidArgument(violation.field, violation.description.rstrip("."))


def _exhausted(call: Any, details: str) -> LatentdError:
    """Overloaded only if the server says when to retry: waiting does not shrink a message."""
    retry = _detail(call, error_details_pb2.RetryInfo)
    if retry is None:
        return ServiceError(
            "RESOURCE_EXHAUSTED",
            f"Request exceeds a limit; retrying will not help ({details.rstrip('.')}). Send or "
            "request fewer rows per call; get_model().limits has the limits.",
        )
    delay = retry.retry_delay
    return Overloaded(
        "",  # only the server knows the reason
        details.partition(" Retry in ")[0].rstrip("."),  # Overloaded appends the delay itself
        delay.seconds + delay.nanos / 1e9,
    )


def _detail(call: Any, kind: Any) -> Any:
    """The google.rpc detail of this kind, or None."""
    try:
        status = rpc_status.from_call(call)
    except (
        ValueError,
        DecodeError,
    ):  # a proxy replaced the status: its details do not belong to it
        return None
    for packed in status.details if status is not None else ():
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    return None


FIRST_WAIT: Final = 0.2  # seconds; doubled with each consecutive failure
MAX_WAIT: Final = 5.0  # seconds
MAX_STREAM_ATTEMPTS: Final = 8  # consecutive, about 12 seconds, before a started stream fails

MAX_TOKENS: Final = 200
TOKENS_PER_SUCCESS: Final = 0.2
"""Each failure costs a token, each success earns a fifth. Below half of MAX_TOKENS the client does
not retry: retries would only add load to servers that are all failing. So 100 calls in flight to a
server that goes away can all be retried elsewhere."""


class Throttle:
    """gRPC's retry throttling (proposal A6), for the retries that the client makes itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: float = MAX_TOKENS

    def failed(self) -> bool:
        """Count a failure; returns whether the client may retry."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0)
            return self._tokens > MAX_TOKENS / 2

    def succeeded(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(self._tokens + TOKENS_PER_SUCCESS, MAX_TOKENS)


class Backoff:
    """How long to wait after a call's failures, and when to give up."""

    def __init__(self, timeout: float | None, max_attempts: int, patient: bool = False) -> None:
        """timeout: seconds for all attempts; None: no deadline.

        max_attempts: for a call, or for a stream until its first response. After that a stream has
                      MAX_STREAM_ATTEMPTS, unless max_attempts is 1.
        patient:      retry an overloaded server, which says when, until the deadline.
        """
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._max_attempts, self._patient = max_attempts, patient
        self._started = False
        self._failures = 0  # consecutive: any response resets it

    def remaining(self) -> float | None:
        """Seconds until the deadline of all attempts; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        """Count a response of a stream."""
        self._started, self._failures = True, 0

    def wait_after(self, error: LatentdError) -> float:
        """Seconds until the next attempt. Raises `error` if there is none."""
        self._failures += 1
        retries = self._max_attempts > 1
        limit = MAX_STREAM_ATTEMPTS if self._started and retries else self._max_attempts
        waits = self._patient and retries and isinstance(error, Overloaded)
        if not (waits or (self._failures < limit and isinstance(error, Unavailable | Overloaded))):
            raise error
        longest = min(MAX_WAIT, FIRST_WAIT * 2 ** (self._failures - 1))
        # Random, so that the clients of a lost server do not all return at the same moment.
        wait = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        if isinstance(error, Overloaded):
            wait = max(wait, error.retry_after)
        remaining = self.remaining()
        if remaining is not None and wait >= remaining:
            raise error
        return wait
