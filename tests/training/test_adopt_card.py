"""The card: its template, its keys, and what is said of a card that is wrong."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from latentd.training.__main__ import main
from latentd.training.adopt.card import TEMPLATE, TENSORS, Card
from latentd.training.errors import TrainingError


def test_template_is_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["adopt", "--card-template"])
    assert ended.value.code == 0
    (tmp_path / "card.toml").write_text(capsys.readouterr().out)
    card = Card.read(tmp_path / "card.toml")
    assert (card.range, card.scale, card.shift, card.prior) == ((-1, 1), (1,), (0,), "none")


def test_template_names_every_key() -> None:
    """Each key stands in it, as a value or as a line that can be uncommented."""
    keys = re.findall(r"^(?:# )?(\w+) = ", TEMPLATE, re.MULTILINE)
    tables = re.findall(r"^# \[(\w+)\]$", TEMPLATE, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(Card)}
    assert fields <= {*keys, *tables}
    assert all(re.search(rf"\b{name}\b", TEMPLATE) for name in TENSORS)


def test_lines_of_the_template_can_be_uncommented() -> None:
    text = re.sub(r"^# (?=\w+ = |\[\w+\]$)", "", TEMPLATE, flags=re.MULTILINE)
    document = tomllib.loads(text)
    either = ("mean", "std"), ("range",)
    for left_out in either:
        card = Card.of({key: value for key, value in document.items() if key not in left_out})
        assert card.sizes["h"] == {"min": 64, "max": 1024, "default": 256, "multiple_of": 8}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layuot = 'NCHW'", "layuot is unknown; expected layout, z_layout"),
        ("layout = 'CHW'", "layout is 'CHW'; expected one of NCHW, NHWC"),
        ("range = [1, -1]", "range is .*; expected two ascending numbers"),
        ("scale = 0", "scale is 0; expected numbers other than 0"),
        ("scale = nan", "scale is nan; expected a finite number"),
        ("mean = 0.5", "mean and std need each other"),
        ("mean = 0.5\nstd = 0.5\nrange = [0, 1]", "range and mean say the same"),
        ("[sizes.h]\nmin = 8\nmax = 64", r"sizes.h.default is missing"),
        ("[sizes.h]\nmin = 8\nmax = 64\ndefault = 4", "sizes.h.default is 4; expected 8 to 64"),
        ("[sizes]\nd = 4", "sizes.d is unknown; expected h, w"),
        ("[tensors]\nmoments = 'm'\nmean = 'n'", "tensors has moments, and mean or log_var"),
        ("[tensors]\ndecoded_width = 'w'", "decoded_width without decoded_x"),
        ("likelihood = 'normal'", "likelihood is 'normal'; expected none, or a table"),
        ("[likelihood]\nname = 'normal'", "likelihood.name is 'normal'; expected one of bernoulli"),
        ("[likelihood]\nname = 'bernoulli'", "likelihood.decoded_x is missing; expected one of"),
        (
            "[likelihood]\nname = 'gaussian'\nstd = 0",
            "likelihood.std is 0; expected a number above",
        ),
        ("[likelihood]\nname = 'laplace'\nstd = 1", "likelihood.std is unknown; expected name, sc"),
        ("x = ", "not TOML"),
        pytest.param("x = " + "[" * 100_000, "has too many lists inside lists", id="deep"),
        pytest.param(f"scale = {'[' * 300}{']' * 300}", "scale is .*; expected a fin", id="lists"),
    ],
)
def test_wrong_card_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=words):
        Card.read(path)


def test_missing_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read: No such file"):
        Card.read(tmp_path / "card.toml")
