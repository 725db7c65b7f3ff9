"""`latentd evaluate` on a run of text: what it measures, and that it names collapse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from latentd.training.evaluation.active_units import LatentUnits, text_collapse
from tests.training.conftest import Cli


def units(*kl: float, variance: float = 1.0) -> LatentUnits:
    return LatentUnits(torch.tensor(kl), torch.full((len(kl),), variance))


def test_collapse_is_named_though_some_units_are_active() -> None:
    assert text_collapse(units(2, 2), information=3.5, distinct=0.9) is None
    for found, information, distinct in (
        (units(0.03, 0.04), 3.5, 0.9),
        (units(2, 2), 0.07, 0.9),
        (units(2, 2), 3.5, 0.034),
        (units(2, 2, variance=0.0), 3.5, 0.9),
    ):
        said = text_collapse(found, information, distinct)
        assert said
        assert said.startswith("COLLAPSED: the rate is ")
        assert "--token-dropout" in said


@pytest.mark.slow
def test_an_evaluation_of_a_run_on_text(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"one two {number * 7919 % 1000}" for number in range(300)))
    tiny = ("--hidden-size", 16, "--latent-size", 4, "--epochs", 2, "--tracker", "none")
    run = tmp_path / "run"
    assert cli("train", "--data", f"text:{words}", *tiny, "--out", run)[0] == 0
    status, printed, err = cli("evaluate", run, "--importance-samples", 20)
    assert status == 0, err
    found = json.loads((run / "evaluation.json").read_text())
    texts, bound = found["texts"], found["bound"]
    lines = words.read_text().splitlines()
    assert 9 * found["rows"] < texts["bytes"] <= (len(max(lines, key=len)) + 1) * found["rows"]
    assert texts["words"] == 3 * found["rows"]
    assert math.isclose(texts["nll_per_byte"], bound["nll"] * found["rows"] / texts["bytes"])
    assert math.isclose(texts["perplexity_per_byte"], 2 ** texts["bits_per_byte"])
    of_word = bound["nll"] * found["rows"] / (4 * found["rows"])
    assert math.isclose(texts["perplexity_per_word"], math.exp(of_word))
    assert 1 <= texts["distinct_greedy_decodes"] <= 1000
    assert found["latent"]["collapsed"]  # two epochs teach it nothing
    assert "COLLAPSED" in printed
    assert printed.count("between two test rows") == 4
    assert "reconstruction" not in found
    for name in ("kl.png", "latent.png", "samples.txt", "interpolation.txt"):
        assert (run / name).exists()
        assert name in printed
    assert not (run / "samples.png").exists()
