"""Uses of the GPU go side by side; a recording is alone, and not put off for ever."""

from __future__ import annotations

import threading
import time

import pytest

from latentd.runtime.capture_lock import CaptureLock

LONG = 20.0  # seconds; nothing here waits so long unless it is broken


class Other:
    """A thread that uses or records, says when it does, and stays until it is let go."""

    def __init__(self, turns: CaptureLock, kind: str) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self._turn = getattr(turns, kind)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with self._turn():
            self.inside.set()
            self.leave.wait(LONG)

    def end(self) -> None:
        self.leave.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


def wait_until_waiting(turns: CaptureLock, threads: int) -> None:
    deadline = time.monotonic() + LONG
    while len(turns._changed._waiters) < threads:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline


def test_uses_go_side_by_side():
    turns = CaptureLock()
    others = [Other(turns, "use") for _ in range(3)]
    for other in others:
        assert other.inside.wait(LONG)
    for other in others:
        other.end()


@pytest.mark.parametrize("kind", ["use", "record"])
def test_nobody_is_beside_a_recording(kind):
    turns = CaptureLock()
    with turns.record():
        other = Other(turns, kind)
        wait_until_waiting(turns, 1)
        assert not other.inside.is_set()
    assert other.inside.wait(LONG)
    other.end()


def test_who_waits_to_record_goes_before_new_uses():
    turns = CaptureLock()
    with turns.use():
        recording = Other(turns, "record")
        wait_until_waiting(turns, 1)
        use = Other(turns, "use")
        wait_until_waiting(turns, 2)
        assert not recording.inside.is_set()
        assert not use.inside.is_set()
    assert recording.inside.wait(LONG)
    wait_until_waiting(turns, 1)
    assert not use.inside.is_set()
    recording.end()
    assert use.inside.wait(LONG)
    use.end()


def test_what_fails_inside_leaves_the_turn():
    turns = CaptureLock()
    for turn in (turns.use, turns.record):
        with pytest.raises(ZeroDivisionError), turn():
            _ = 1 / 0
    with turns.record():
        pass
    with turns.use():
        pass
