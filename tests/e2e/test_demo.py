"""What `make demo` runs, with a training of seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.server import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)  # twelve commands, one after the other, on a busy machine
def test_demo_calls_every_method_and_leaves_pictures(tmp_path):
    command = tmp_path / "latentd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latentd "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DEMO_PORT": str(free_port()),
        "DEMO_HTTP_PORT": str(free_port()),
        "DEMO_EPOCHS": "1",
    }
    out = tmp_path / "demo"
    run = subprocess.run(
        [ROOT / "deploy" / "demo.sh", out], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    for call in ("sample", "stream", "encode", "decode", "reconstruct", "interpolate", "score"):
        assert f"latentd client {call} " in run.stdout
    assert "/explore/digits while this server runs" in run.stdout
    listed = [Path(line) for line in run.stdout.splitlines() if line.endswith(".png")]
    assert {path.parent for path in listed} == {out, out / "digits", out / "names"}
    for path in listed:
        with Image.open(path) as picture:
            assert max(picture.size) > 900, path
    _, _, end = run.stdout.partition("== Invent twenty names")
    calls = end.partition("== Stop")[0].split("latentd client ")[1:]
    lines = [[line for line in call.splitlines() if line[:1] not in ("", "\033")] for call in calls]
    assert [len(call) for call in lines] == [1 + 20 + 1, 1 + 8 + 1], "command, texts, summary"
