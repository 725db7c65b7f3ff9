"""Hedging, to ask a second server while the first still works, is off: it would double overload."""

from __future__ import annotations

import pytest

from latentd.client import Client
from latentd.errors import DeadlineExceeded
from tests.support.fake_server import Running, Scripted


def test_a_server_that_is_slow_is_asked_once(scripted: Running, script: Scripted) -> None:
    script.faults.append(lambda context: script.left.wait(30))
    with Client(scripted.target, timeout=1) as client, pytest.raises(DeadlineExceeded):
        client.sample(1)
    assert len(script.requests) == 1
