"""Work in a separate thread: one piece at a time, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from latentd.jobs.worker import BackgroundWriter


def test_pieces_run_in_order_and_exit_waits_for_all():
    first, done = threading.Event(), []

    def wait_and_note() -> None:
        first.wait()
        done.append(1)

    with BackgroundWriter() as behind:
        behind.submit(wait_and_note)
        assert done == []
        first.set()
        behind.submit(lambda: done.append(2))
        assert done[:1] == [1]
    assert done == [1, 2]


def test_error_of_a_piece_is_raised():
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BackgroundWriter() as behind:
        behind.submit(fail)
    with BackgroundWriter() as behind:
        behind.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            behind.submit(fail)


def test_error_of_the_owner_has_priority():
    def fail() -> None:
        raise OSError("disk full")

    def own() -> None:
        with BackgroundWriter() as behind:
            behind.submit(fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own()
