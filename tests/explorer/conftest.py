"""A real Chromium, and the explorer beside a real server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.processes import StartProcess, process_starter

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

Explore = Callable[..., str]
"""Starts `latentd explore` beside a server; returns the address of its page."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="make test-explorer installs it")
    if CHROMIUM is None:
        pytest.skip("Chromium is not here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page that may be inspected. A request to another host, an error of the page or of its
    console fails the test."""
    yield from _tab(browser)


def _tab(browser: Any, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: _check_host(request.url, faults))
    page.on("console", lambda said: _check_console(said, faults))
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert not faults


def _check_host(url: str, faults: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        faults.append(f"request to {url}")


def _check_console(said: Any, faults: list[str]) -> None:
    # A response with an error status is logged by the browser itself.
    if said.type == "error" and not said.text.startswith("Failed to load resource"):
        faults.append(said.text)


@pytest.fixture
def explore(start_process: StartProcess) -> Explore:
    return _starter(start_process)


@pytest.fixture(scope="module")
def module_explore() -> Iterator[Explore]:
    with process_starter() as start:
        yield _starter(start)


def _starter(start_process: StartProcess) -> Explore:
    def start(target: str, *flags: str) -> str:
        command = (Path(sys.executable).parent / "latentd", "explore", "--server", target)
        process = start_process(
            [*command, "--port", "0", *flags], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process.stdout.readline().split(" at ")[1].split()[0]

    return start
