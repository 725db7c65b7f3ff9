"""Hedging, a second call while the first is pending, is off: it would double an overload."""

from __future__ import annotations

import pytest

from latentd.client import Client
from latentd.errors import DeadlineExceeded
from tests.support.fake_server import FakeServer, ScriptedService


def test_slow_server_is_called_once(scripted: FakeServer, script: ScriptedService) -> None:
    script.faults.append(lambda context: script.call_ended.wait(30))
    with Client(scripted.target, timeout=1) as client, pytest.raises(DeadlineExceeded):
        client.sample(1)
    assert len(script.requests) == 1
