"""The tests of serving/rpc run on both listeners."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", params=["core", "aio"])
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)
