"""The `latentd` command: its help, and the flags and variables of its commands."""

from __future__ import annotations

import re

import pytest

from latentd import __main__, __version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve --bundle models", "no flag --bundle. Did you mean --bundles?"),
        ("serve --workers 2 --log-lvl=info", "Did you mean --log-level?"),
        ("batch --inp x", "no flag --inp. Did you mean --input?"),
        ("plan --rat 3", "Did you mean --rate?"),
        ("token someone --scope models", "Did you mean --scopes?"),
        ("client sample --cuont 3", "Did you mean --count?"),
        ("client score x.npy --nothing-like-it", "See latentd client score --help."),
        ("train --ou runs", "no flag --ou. Did you mean --out?"),
        ("export --bundle models", "Did you mean --bundles?"),
        ("evaluate runs --importance-sample 5", "Did you mean --importance-samples?"),
        ("compare --out runs --epoch 5", "Did you mean --epochs?"),
        ("adopt --onx e.onnx d.onnx", "Did you mean --onnx?"),
    ],
)
def test_unknown_flag_is_refused_with_the_nearest_known_one(capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        __main__.main(words.split())
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "x", "-1"])
def test_variable_is_read_only_by_the_command_that_uses_it(monkeypatch, capsys, tmp_path, value):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", value)
    monkeypatch.setenv("LATENTD_SERVER", value)
    assert __main__.main(["token", "someone"]) == 0
    assert __main__.main(["serve", "--bundles", str(tmp_path / "none"), "--workers", "1"]) == 78
    assert "JOB_COMPLETION_INDEX" not in capsys.readouterr().err
    job = ["batch", "--input", "x", "--output", str(tmp_path / "y"), "--bundle", "z"]
    assert __main__.main(job) == 78
    assert f"JOB_COMPLETION_INDEX={value}: must be an integer" in capsys.readouterr().err
    assert __main__.main([*job, "--shard-index", "0"]) == 78
    assert "JOB_COMPLETION_INDEX" not in capsys.readouterr().err
    assert __main__.main(["client", "health"]) == 2
    assert "LATENTD_SERVER: Invalid address" in capsys.readouterr().err


COMMANDS = [
    "train",
    "tune",
    "evaluate",
    "compare",
    "runs",
    "compare-runs",
    "export",
    "adopt",
    "bundle",
    "serve",
    "client",
    "explore",
    "batch",
    "plan",
    "token",
]


def test_help_lists_every_command_on_one_screen(capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    assert re.findall(r"^    ([\w-]+)", text, re.MULTILINE) == COMMANDS


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"latentd {__version__}\n"
