"""The supervisor of several workers, without any: what it does when it is stopped early."""

from __future__ import annotations

import signal
from typing import Any

from serving.process.supervisor import Supervisor
from serving.settings import Settings


class Impatient(Supervisor):
    """Is asked to stop while it starts its first worker."""

    begun = 0

    def _start(self, number: int) -> Any:
        self.begun += 1
        signal.raise_signal(signal.SIGINT)


def test_who_is_stopped_while_workers_start_starts_no_more_of_them():
    supervisor = Impatient(Settings(workers=500, port=0, metrics_port=0))
    assert supervisor.run() == 0
    assert supervisor.begun == 1
