"""How a job ends: exit statuses of sysexits.h, so that a scheduler knows whether to try again.

0    done: every row is written or quarantined with a reason
65   EX_DATAERR: an input is not what it claims, or changed; trying again changes nothing
66   more rows are quarantined than --max-quarantined allows, so there is no _SUCCESS; all else is
     done, and the command with a higher limit only adds that
69   EX_UNAVAILABLE: the server could not be reached for long
70   EX_SOFTWARE: a worker died, or an error of our own
74   EX_IOERR: the disk is full or broken, or finished shards are gone from it; repair that and
     repeat the command
78   EX_CONFIG: flags, bundle or plan contradict each other; no use to try again unchanged
130  Ctrl-C, and 143 SIGTERM: repeat the command to go on
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
    """A worker process ended without saying why: killed, or out of memory."""


class EngineBroken(LatentdError):
    """The model fails on rows that it is known to be right for: the fault is not a row's."""


class ShardsLost(LatentdError):
    """Shards that this process committed are no longer there."""


class TooManyQuarantined(LatentdError):
    """More rows are quarantined than the job may have."""


def status(error: BaseException) -> int:
    """The exit status that an error leads to."""
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
    if isinstance(error, LatentdError):  # what is left of the tree comes from a server
        return UNAVAILABLE
    return IO if isinstance(error, OSError) else SOFTWARE
