"""A property tried for as long as `make fuzz FUZZ_SECONDS=300` says, with new inputs each time."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, seed, settings

SECONDS = float(os.environ.get("LATENTD_FUZZ_SECONDS", "0"))  # of each test
EXAMPLES = 300  # in one go
TRIED = {"inputs": 0}  # so far, by all the tests


def again_and_again(
    test: Callable[[], None],
    request: pytest.FixtureRequest,
    mutants: Callable[[random.Random], None] = lambda chance: None,
) -> None:
    """Run a property once; or, with new inputs each time and `mutants` of them, until its seconds
    are over."""
    until, rounds = time.monotonic() + SECONDS, 0
    inner = test.hypothesis.inner_test  # type: ignore[attr-defined]
    before = TRIED["inputs"]

    @functools.wraps(inner)
    def counted(*args: object, **kwargs: object) -> None:
        TRIED["inputs"] += 1
        inner(*args, **kwargs)

    test.hypothesis.inner_test = counted  # type: ignore[attr-defined]
    while rounds == 0 or time.monotonic() < until:
        seed(rounds)(test)()
        rounds += 1
        if SECONDS:
            mutants(random.Random(rounds))
    if SECONDS:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f" {TRIED['inputs'] - before:,} inputs, {TRIED['inputs']:,} in all")


once = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
