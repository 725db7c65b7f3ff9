"""What can go wrong in the service, said without naming a transport.

    LatentdError
    ├── InvalidArgument       the caller's request cannot be right; names the field
    ├── BadData            a file of rows is not what it claims to be
    ├── Unsupported        the call asks for what no server of this kind does
    ├── ModelNotFound      no such model or version is served
    ├── Unauthenticated   the caller sent no token that is known
    ├── PermissionDenied         the caller's token is not for this
    ├── Overloaded         refused at the door; says when to come back
    ├── DeadlineExceeded    the caller's deadline passed before the answer was ready
    ├── Unavailable           starting, draining or stopped; another server may answer
    ├── BundleError        a bundle on disk is not what its manifest says
    └── ConfigError        the operator's settings cannot be served

`latentd.transport.status` holds the one table that turns these into gRPC statuses.
"""

from __future__ import annotations

from typing import Final

EXIT_CONFIG: Final = 78
"""Exit status after a ConfigError, EX_CONFIG of sysexits.h: no use to try again unchanged."""


class LatentdError(Exception):
    """Base of every error whose message is a sentence written for the person who reads it."""


class InvalidArgument(LatentdError):
    """A request that cannot be right.

    field: path of the request's field, as in the .proto file ("x.data", "count").
    what:  what is wrong with it, with the offending value where it is small.
    hint:  what to do instead.
    """

    def __init__(self, field: str, what: str, hint: str = "") -> None:
        self.field, self.what, self.hint = field, what, hint
        super().__init__(f"{field}: {what}." + (f" {hint}." if hint else ""))

    @property
    def reason(self) -> str:
        """What is wrong and what to do, for a row that is named elsewhere."""
        return f"{self.what}. {self.hint}".rstrip(". ")


class BadData(LatentdError):
    """A file that cannot be read as what it claims to be, as a whole: no single row of it is at
    fault."""


class Unsupported(LatentdError):
    """The call is made in a way that this server does not support; the message says how to."""


class ModelNotFound(LatentdError):
    """The named model or version is not served here; the message lists what is."""


class Unauthenticated(LatentdError):
    """The call carries no token, or one that is not known here."""


class PermissionDenied(LatentdError):
    """The token is known and its scopes do not include this."""


class Overloaded(LatentdError):
    """The queue is full, or its wait would outlast the caller's deadline.

    retry_after: seconds after which a retry is likely to be admitted.
    """

    def __init__(self, reason: str, what: str, retry_after: float) -> None:
        self.reason, self.retry_after = reason, retry_after
        super().__init__(f"{what}. Retry in {retry_after:.3f} s.")


class DeadlineExceeded(LatentdError):
    """The caller's deadline passed while its rows waited; they were never run."""


class Unavailable(LatentdError):
    """This server cannot take the call now: it is starting or draining."""


class BundleError(LatentdError):
    """A bundle is missing a file, altered, or not of a format this code reads.

    reason: one word for the metric label (missing, unreadable, checksum, format, external,
        signature, golden, engine, pin; of a load: timeout, memory, crash).
    """

    def __init__(self, reason: str, what: str) -> None:
        self.reason = reason
        super().__init__(what)


class ConfigError(LatentdError):
    """The settings ask for what this machine cannot give; the server refuses to start."""
