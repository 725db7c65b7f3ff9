"""The errors of training and export. Each message is a sentence for the user.

    TrainingError     the request cannot be carried out: the message says what, where, what to do
    └── RunFailed     the result is unusable: training diverged, or export lost parity
        └── AdmissionError  a model that was trained elsewhere must not be served as it is

Only `latentd.training.__main__` turns these errors into stderr and an exit status.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

_OUT_OF_MEMORY: Final = r"out of memory|can't allocate memory"  # torch's messages: GPU, CPU


class TrainingError(Exception):
    """A flag, data set or checkpoint is invalid. Nothing has been written."""

    status: ClassVar[int] = 2


class RunFailed(TrainingError):
    """The work ran, but its result must not be used. Nothing has been published."""

    status: ClassVar[int] = 1


class AdmissionError(RunFailed):
    """A model that was trained elsewhere failed a check of its admission. Nothing has been
    published."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has no exception for CPU memory."""
    wanted = isinstance(error, RuntimeError) and re.search(_OUT_OF_MEMORY, str(error))
    return isinstance(error, MemoryError) or bool(wanted)
