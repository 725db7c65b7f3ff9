"""Run a property for the seconds of `make fuzz FUZZ_SECONDS=300`, with new inputs each time."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, seed, settings

SECONDS = float(os.environ.get("LATENTD_FUZZ_SECONDS", "0"))  # per test
EXAMPLES = 300  # per round
TRIED = {"inputs": 0}  # so far, in all tests


def run_repeatedly(
    test: Callable[[], None],
    request: pytest.FixtureRequest,
    mutants: Callable[[random.Random], None] = lambda chance: None,
) -> None:
    """Run a property once. With FUZZ_SECONDS, repeat it for that time with new inputs, and run
    `mutants` of them after each round."""
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
            print(f" {TRIED['inputs'] - before:,} inputs, {TRIED['inputs']:,} in total")


once = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
