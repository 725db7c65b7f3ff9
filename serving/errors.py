"""The errors of the service, independent of the transport.

    LatentdError
    ├── InvalidArgument    the request is invalid; names the field
    ├── BadData            a file of rows is not valid in its format
    ├── Unsupported        the server does not support this kind of call
    ├── ModelNotFound      no such model or version is served
    ├── Unauthenticated    the client sent no known token
    ├── PermissionDenied   the client's token lacks a scope
    ├── Overloaded         admission rejected the call; says when to retry
    ├── DeadlineExceeded   the call's deadline passed before the response was ready
    ├── Unavailable        the server starts, drains or has stopped; another may respond
    ├── BundleError        a bundle on disk cannot be served
    └── ConfigError        the server cannot start with these settings

`latentd.transport.status` holds the table that turns them into gRPC statuses.
"""

from __future__ import annotations

from typing import Final

EXIT_CONFIG: Final = 78
"""Exit status after a ConfigError, EX_CONFIG of sysexits.h: a retry needs other settings."""


class LatentdError(Exception):
    """Base of every error whose message is a sentence for users."""


class InvalidArgument(LatentdError):
    """The request is invalid.

    field: path of the request's field, as in the .proto file ("x.data", "count").
    what:  what is wrong, with the invalid value if it is short.
    hint:  what to do instead.
    """

    def __init__(self, field: str, what: str, hint: str = "") -> None:
        self.field, self.what, self.hint = field, what, hint
        super().__init__(f"{field}: {what}." + (f" {hint}." if hint else ""))

    @property
    def reason(self) -> str:
        """What is wrong and what to do, without the field."""
        return f"{self.what}. {self.hint}".rstrip(". ")


class BadData(LatentdError):
    """A file cannot be read in its format; the fault is not in a single row."""


class Unsupported(LatentdError):
    """The server does not support this kind of call; the message says what it supports."""


class ModelNotFound(LatentdError):
    """The named model or version is not served here; the message lists what is."""


class Unauthenticated(LatentdError):
    """The call has no token, or an unknown one."""


class PermissionDenied(LatentdError):
    """The token is known, but lacks the scope that the method requires."""


class Overloaded(LatentdError):
    """The queue is full, or the estimated wait exceeds the call's deadline.

    retry_after: seconds after which a retry is likely to be admitted.
    """

    def __init__(self, reason: str, what: str, retry_after: float) -> None:
        self.reason, self.retry_after = reason, retry_after
        super().__init__(f"{what}. Retry in {retry_after:.3f} s.")


class DeadlineExceeded(LatentdError):
    """The call's deadline passed while its rows were queued; they were not run."""


class Unavailable(LatentdError):
    """The server cannot accept the call now: it starts, drains or has stopped."""


class BundleError(LatentdError):
    """A bundle cannot be served: files are missing, altered or invalid, or its load fails.

    reason: one word for the metric label (missing, unreadable, checksum, format, external,
        signature, golden, map, engine, pin; of a load: timeout, memory, crash).
    """

    def __init__(self, reason: str, what: str) -> None:
        self.reason = reason
        super().__init__(what)


class ConfigError(LatentdError):
    """The settings are invalid or not possible on this machine; the server does not start."""
