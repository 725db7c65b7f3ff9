"""Runs of `latentd client` in an empty folder, against the module's server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentd.__main__ import main
from latentd.client import Client

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a client call in an empty folder; returns its status, stdout and stderr."""
    monkeypatch.setenv("LATENTD_SERVER", server.target)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = main(["client", *words])
        except SystemExit as exited:  # argparse exits on errors
            status = int(exited.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def done(run: Run) -> Callable[..., str]:
    """Run a call that must succeed; returns its stdout."""

    def done(*words: str) -> str:
        status, out, err = run(*words)
        assert (status, err) == (0, "")
        assert list(Path().glob(".*")) == []  # no temporary file is left
        return out

    return done


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client
