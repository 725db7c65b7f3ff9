"""Hedging, a second call while the first is pending, is off: it would double an overload."""

from __future__ import annotations

import pytest

from latentd.client import Client
from latentd.errors import DeadlineExceeded
from tests.support.fake_server import FakeServer, ScriptedService


def test_slow_server_is_called_once(scripted: FakeServer, script: ScriptedService) -> None:
    for seconds in (1, 8, 64):  # on a busy machine a call takes long to arrive
        script.faults.append(lambda context: script.call_ended.wait(60))
        with Client(scripted.target, timeout=seconds) as client, pytest.raises(DeadlineExceeded):
            client.sample(1)
        if script.requests:
            break
        script.faults.clear()
    assert len(script.requests) == 1
