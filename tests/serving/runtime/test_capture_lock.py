"""Any number of threads hold the lock as shared; an exclusive holder is alone and never starves."""

from __future__ import annotations

import threading
import time

import pytest

from latentd.runtime.capture_lock import CaptureLock
from tests.support.wait import LONG


class Holder:
    """A thread that takes the lock, sets `inside`, and keeps the lock until `end`."""

    def __init__(self, lock: CaptureLock, kind: str) -> None:
        self.inside, self.may_leave = threading.Event(), threading.Event()
        self._acquire = getattr(lock, kind)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with self._acquire():
            self.inside.set()
            self.may_leave.wait(LONG)

    def end(self) -> None:
        self.may_leave.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


def wait_until_waiting(lock: CaptureLock, threads: int) -> None:
    deadline = time.monotonic() + LONG
    while len(lock._changed._waiters) < threads:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline


def test_shared_holders_run_at_once():
    lock = CaptureLock()
    holders = [Holder(lock, "shared") for _ in range(3)]
    for holder in holders:
        assert holder.inside.wait(LONG)
    for holder in holders:
        holder.end()


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_exclusive_holder_is_alone(kind):
    lock = CaptureLock()
    with lock.exclusive():
        holder = Holder(lock, kind)
        wait_until_waiting(lock, 1)
        assert not holder.inside.is_set()
    assert holder.inside.wait(LONG)
    holder.end()


def test_waiting_exclusive_goes_before_later_shared():
    lock = CaptureLock()
    with lock.shared():
        exclusive = Holder(lock, "exclusive")
        wait_until_waiting(lock, 1)
        shared = Holder(lock, "shared")
        wait_until_waiting(lock, 2)
        assert not exclusive.inside.is_set()
        assert not shared.inside.is_set()
    assert exclusive.inside.wait(LONG)
    wait_until_waiting(lock, 1)
    assert not shared.inside.is_set()
    exclusive.end()
    assert shared.inside.wait(LONG)
    shared.end()


def test_lock_is_released_when_the_block_raises():
    lock = CaptureLock()
    for acquire in (lock.shared, lock.exclusive):
        with pytest.raises(ZeroDivisionError), acquire():
            _ = 1 / 0
    with lock.exclusive():
        pass
    with lock.shared():
        pass
