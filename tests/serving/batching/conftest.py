"""A batcher with an engine that the test holds and releases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_engine import Harness


@pytest.fixture
def h() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.release()
    harness.batcher.close()
    assert (harness.queue.rows, harness.queue.bytes) == (0, 0)
