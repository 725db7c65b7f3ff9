"""What can go wrong in training and export, each message a sentence for the person who reads it.

    TrainingError     what was asked for cannot be done: the message says what, where, what to do
    └── RunFailed     it ran and its result is unusable: it diverged, or export lost parity

`latentd.training.__main__` holds the one place that turns these into stderr and an exit status.
"""

from __future__ import annotations

from typing import ClassVar


class TrainingError(Exception):
    """A flag, data set or checkpoint that cannot be right. Nothing has been written."""

    status: ClassVar[int] = 2


class RunFailed(TrainingError):
    """The work ran and its result must not be used. What it would have published is not there."""

    status: ClassVar[int] = 1
