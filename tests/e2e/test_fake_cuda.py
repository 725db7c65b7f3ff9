"""Serving's tests for a GPU, on ONNX Runtime's CUDA provider with no GPU: on the stand-in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake_cuda

pytestmark = pytest.mark.skipif(bool(fake_cuda.lacking()), reason=fake_cuda.lacking())

ROOT = Path(__file__).resolve().parents[2]


def on_fake_cuda(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | fake_cuda.environment(folder)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_serving_does_on_a_gpu_what_it_should(tmp_path, record_property):
    tests = ("-m", "gpu", "tests/serving", "tests/e2e", "-p", "no:cacheprovider")
    run = on_fake_cuda(tmp_path, sys.executable, "-m", "pytest", *tests)
    assert run.returncode == 0, run.stdout
    figures = re.search(r"(\d+) passed(, \d+ skipped)?", run.stdout)
    assert figures
    assert not figures[2], run.stdout
    record_property("figures", f"tests for a GPU: {figures[0]}")
