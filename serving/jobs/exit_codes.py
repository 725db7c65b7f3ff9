"""Exit statuses of a job, from sysexits.h, so that a scheduler knows whether to retry.

0    done: every row is written or quarantined with a reason
65   EX_DATAERR: an input is damaged or changed; a retry does not help
66   more rows are quarantined than --max-quarantined allows: all shards are done, _SUCCESS is
     missing; rerun the command with a higher limit to add it
69   EX_UNAVAILABLE: the server was unavailable for too long
70   EX_SOFTWARE: a worker died, or latentd has a bug
74   EX_IOERR: the disk is full or broken, or lost finished shards; fix the disk and rerun the
     command
78   EX_CONFIG: flags, bundle or plan contradict each other; a retry does not help
130  Ctrl-C, and 143 SIGTERM: rerun the command to resume
"""

from __future__ import annotations

from typing import Final

from latentd.errors import (
    EXIT_CONFIG,
    BadData,
    BundleError,
    ConfigError,
    InvalidArgument,
    LatentdError,
)

DATA: Final = 65
QUARANTINED: Final = 66
UNAVAILABLE: Final = 69
SOFTWARE: Final = 70
IO: Final = 74
CONFIG: Final = EXIT_CONFIG
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class WorkerDied(LatentdError):
    """A worker process ended without a message: killed, or out of memory."""


class EngineBroken(LatentdError):
    """The model fails on its own golden vectors: the engine is at fault, not a row."""


class ShardsLost(LatentdError):
    """Shards that this process committed have disappeared."""


class TooManyQuarantined(LatentdError):
    """More rows are quarantined than --max-quarantined allows."""


def status(error: BaseException) -> int:
    """The exit status for an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else SOFTWARE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BadData):
        return DATA
    if isinstance(error, ConfigError | BundleError | InvalidArgument):
        return CONFIG
    if isinstance(error, TooManyQuarantined):
        return QUARANTINED
    if isinstance(error, ShardsLost):
        return IO
    if isinstance(error, WorkerDied | EngineBroken):
        return SOFTWARE
    if isinstance(error, LatentdError):  # all other errors of the tree come from a server
        return UNAVAILABLE
    return IO if isinstance(error, OSError) else SOFTWARE
