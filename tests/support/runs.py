"""Runs of the command line too short to be any good, and what they leave behind, read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from latentd.training import checkpoint

TRAIN = (sys.executable, "-m", "latentd", "train")
TINY = ("--epochs", 4, "--hidden-size", 16, "--latent-size", 3)
SIX_EPOCHS = (*TINY, "--epochs", 6)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What log.jsonl says."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    """The same without what no two runs have in common."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "cpu_seconds", "run", "threads")}
        for line in lines(folder)
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit: weights, optimizer, generators and log, in last.pt and best.pt."""
    assert untimed(a) == untimed(b)
    for name in ("last.pt", "best.pt"):
        first, second = checkpoint.load(a / name), checkpoint.load(b / name)
        for part in ("weights", "generators"):
            left, right = getattr(first, part), getattr(second, part)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left), (name, part)
        torch.testing.assert_close(first.optimizer, second.optimizer, rtol=0, atol=0)


def numbers(out: Path) -> dict[str, Any]:
    """The claims of comparison.json by title."""
    raw = json.loads((out / "comparison.json").read_text())
    return {claim["title"]: claim for claim in raw["claims"]}
