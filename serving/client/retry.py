"""Errors of failed calls, and whether and when a failed call is tried again."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from dataclasses import dataclass, field
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

log = logging.getLogger(__name__)

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
            # Before the cause, gRPC says that all servers have failed.
            cause = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ").rstrip(".")
            return Unavailable(
                f"{target} is unavailable ({cause})."
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


FIRST_LOG: Final = 1.0  # seconds after a server was lost
LOG_EVERY: Final = 5.0  # seconds after that
FIRST_WAIT: Final = 0.2  # seconds; doubled with each consecutive failure
MAX_WAIT: Final = 1.0  # seconds: a repaired network is noticed about as soon

MAX_TOKENS: Final = 200
TOKENS_PER_SUCCESS: Final = 0.2
"""Each rejection costs a token, each success earns a fifth. Below half of MAX_TOKENS the client
does not retry: retries would only add load to servers that reject all calls."""


class Throttle:
    """gRPC's retry throttling (proposal A6), for rejected calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: float = MAX_TOKENS

    def rejected(self) -> bool:
        """Count a rejection; returns whether the client may retry."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0)
            return self._tokens > MAX_TOKENS / 2

    def answered(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(self._tokens + TOKENS_PER_SUCCESS, MAX_TOKENS)


class Contact:
    """Whether a client's servers answer, as its calls have shown. The log says when none does.

    made: whether a server has ever answered: then the address is right, and waiting makes sense;
          from the start, if the caller knows that
    """

    def __init__(self, target: str, made: bool = False) -> None:
        self.made = made
        self._target = target
        self._lock = threading.Lock()
        self._lost_at: float | None = None  # None: the last call was answered
        self._log_at = 0.0
        self._logged = False

    def answered(self) -> None:
        """Note a server's answer, which may be an error."""
        if self.made and self._lost_at is None:
            return  # nothing changes, so no lock
        with self._lock:
            lost_at, logged = self._lost_at, self._logged
            self.made, self._lost_at, self._logged = True, None, False
        if lost_at is not None and logged:
            log.warning("%s answers again after %.0f s.", self._target, time.monotonic() - lost_at)

    def lost(self, error: LatentdError, left: float) -> None:
        """Note that a call failed and will be tried again, for `left` seconds at most."""
        now = time.monotonic()
        with self._lock:
            if self._lost_at is None:
                # Not logged at once: another server may answer.
                self._lost_at, self._log_at = now, now + FIRST_LOG
            lost_at = self._lost_at
            if now < self._log_at:
                return
            self._log_at, self._logged = now + LOG_EVERY, True
        limit = "without a limit" if left == math.inf else f"for {left:.0f} s more"
        log.warning("%s Lost %.0f s ago; waiting for it %s.", error, now - lost_at, limit)


@dataclass(frozen=True)
class RetryPolicy:
    """What all calls of a client share.

    max_attempts:      for a call that is rejected as overloaded, or while no server has answered
                       yet; 1: no call is ever tried again
    reconnect_timeout: seconds without an answer until a call without a deadline gives up
    """

    max_attempts: int
    reconnect_timeout: float
    contact: Contact
    throttle: Throttle = field(default_factory=Throttle)


class Backoff:
    """How long to wait after a call's failures, and when to give up.

    A lost server is waited for until the deadline, or for `reconnect_timeout` since the last
    response if there is none. gRPC itself reconnects meanwhile.
    """

    def __init__(self, policy: RetryPolicy, timeout: float | None, patient: bool = False) -> None:
        """timeout: seconds for all attempts; None: no deadline.

        patient: wait as long for an overloaded server, which says when to come back.
        """
        self._policy, self._patient = policy, patient
        now = time.monotonic()
        self._deadline = None if timeout is None else now + timeout
        self._answered_at = now
        self._failures = 0  # consecutive: any response resets it
        self._lost: LatentdError | None = None  # the latest of these failures, if it was that

    def remaining(self) -> float | None:
        """Seconds until the deadline of all attempts; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def answered(self) -> None:
        """Count a response. A stream that has had one loses nothing to an overloaded server."""
        self._patient, self._failures, self._lost = True, 0, None
        self._answered_at = time.monotonic()
        self._policy.contact.answered()
        self._policy.throttle.answered()

    def wait_after(self, error: LatentdError) -> float:
        """Seconds until the next attempt. Raises `error` if there is none."""
        self._failures += 1
        if isinstance(error, DeadlineExceeded) and self._lost is not None:
            raise self._lost  # more rows or time are not what the call lacked
        left = self._left()
        if not self._may_retry(error, left):
            raise error
        longest = min(MAX_WAIT, FIRST_WAIT * 2 ** min(self._failures - 1, 10))
        # Random, so that the clients of a lost server do not all return at the same moment.
        wait = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        if isinstance(error, Overloaded):
            wait = max(wait, error.retry_after)
        if wait >= left:
            raise error
        return wait

    def _left(self) -> float:
        remaining = self.remaining()
        if remaining is not None:
            return remaining
        return self._answered_at + self._policy.reconnect_timeout - time.monotonic()

    def _may_retry(self, error: LatentdError, left: float) -> bool:
        policy = self._policy
        more_attempts = self._failures < policy.max_attempts
        if isinstance(error, Unavailable):
            self._lost = error
            waits = policy.contact.made and policy.max_attempts > 1
            if waits:
                policy.contact.lost(error, left)
            return waits or more_attempts
        if not isinstance(error, DeadlineExceeded):
            policy.contact.answered()
        if isinstance(error, Overloaded):
            if self._patient:
                return policy.max_attempts > 1
            return policy.throttle.rejected() and more_attempts
        return False
