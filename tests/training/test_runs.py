"""`latentd runs` and `latentd compare-runs`: real logs, and logs that were damaged or changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd.training.logger import RunLogger
from latentd.training.runs import listing, recorded_run
from tests.support.runs import lines

Cli = Callable[..., tuple[int, str, str]]
Copy = Callable[..., Path]


@pytest.fixture
def copy(tmp_path: Path, digits: Path) -> Copy:
    """Write a real log under another name, with other settings, header and best figures."""

    def write(
        name: str, elbo: float = -50.0, header: dict[str, Any] | None = None, **settings: Any
    ):
        first, *epochs, result = lines(digits.parent)
        first |= {"run": first["run"] | settings, **(header or {})}
        epochs[-1]["validation_elbo"] = elbo
        result |= {"best_epoch": 2, "test_elbo": elbo - 1}
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        text = "".join(f"{json.dumps(line)}\n" for line in (first, *epochs, result))
        (folder / "log.jsonl").write_text(text)
        return folder

    return write


def evaluated(folder: Path, **changes: Any) -> None:
    found = {
        **{"epoch": 2, "own_data": True, "rows": 180},
        **{"bound": {"nll": 48.125, "samples": 5000}, "latent": {"active_units": 3}},
    }
    (folder / "evaluation.json").write_text(json.dumps(found | changes))


def test_real_run_is_listed_with_the_figures_of_its_log(cli: Cli, digits: Path) -> None:
    header, *epochs, result = lines(digits.parent)
    status, out, err = cli("runs", digits.parent, "--json")
    assert (status, err) == (0, "")
    (run,) = json.loads(out)
    assert run["run"] == str(digits.parent)
    assert (run["state"], run["faults"]) == ("finished", [])
    assert (run["epochs"], run["epochs_asked"]) == (2, 2)
    assert run["parameters"] == header["parameters"]
    assert run["best_epoch"] == result["best_epoch"]
    assert run["validation_elbo"] == epochs[result["best_epoch"] - 1]["validation_elbo"]
    assert run["test_rate"] == result["test_rate"]
    assert run["nll"] is None
    assert run["seconds"] == pytest.approx(sum(line["seconds"] for line in epochs))
    assert run["settings"] == header["run"]
    _, text, _ = cli("runs", digits.parent)
    kind, head, row = text.splitlines()
    assert kind == "digits: ELBO of a density over pixels scaled to [0, 1]"
    assert head.index("state") == row.index("finished")
    assert "mlp 16x2" in row
    assert f"{result['test_elbo']:.2f}" in row


def test_runs_are_sorted_within_their_kind_of_data(cli: Cli, tmp_path: Path, copy: Copy) -> None:
    copy("b", -50.0)
    copy("a", -60.0, hidden_size=None, latents="spatial", model="ae")
    copy("deep/c", -20.0, header={"elbo": "ELBO of the bytes themselves"})
    copy("d", -10.0)

    def names(*flags: str) -> list[str]:
        _, text, _ = cli("runs", tmp_path / "runs", *flags)
        found = [line.split()[0] for line in text.splitlines() if line.startswith(str(tmp_path))]
        return [str(Path(name).relative_to(tmp_path / "runs")) for name in found]

    assert names() == ["d", "b", "a", "deep/c"]
    assert names("--sort", "name") == ["a", "b", "d", "deep/c"]
    evaluated(tmp_path / "runs" / "a")
    assert names("--sort", "nll")[0] == "a"
    os.utime(tmp_path / "runs" / "b" / "log.jsonl", (2e9, 2e9))
    assert names("--sort", "newest")[0] == "b"
    _, text, _ = cli("runs", tmp_path / "runs")
    assert "ae mlp 2 " in text
    assert "3 channels" in text


def test_nll_has_its_number_of_draws_and_rows(cli: Cli, tmp_path: Path, copy: Copy) -> None:
    evaluated(copy("whole"))
    evaluated(copy("part"), rows=50)
    _, text, _ = cli("runs", tmp_path / "runs")
    assert "48.12 (S 5,000)" in text
    assert "48.12 (S 5,000, 50 rows)" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 1}, "is of epoch 1, but the best is 2; run `latentd evaluate` again"),
        ({"own_data": False}, "is of other data"),
    ],
)
def test_evaluation_of_something_else_is_named(
    cli: Cli, tmp_path: Path, copy: Copy, changes: dict[str, Any], words: str
) -> None:
    evaluated(copy("run"), **changes)
    _, text, _ = cli("runs", tmp_path / "runs")
    assert f"{tmp_path}/runs/run: evaluation.json: {words}" in text
    assert "48.12" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        ("what is this\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"level": "info"}\n', "line 1 is not one of `latentd train`: it has no 'run'"),
        ('{"run": {}', "line 1 is not complete"),
        ('{"run": {}}\n{"epoch": 1, "validation_elbo": "x"}\n', "line 2 has 'x' for"),
        ('{"run": {}}\n{"best_epoch": 1}\n{"epoch": 1}\n', "line 3 comes after"),
        ("\x00\xff\n", "line 1 is not JSON"),
    ],
)
def test_log_that_cannot_be_read_is_named(
    cli: Cli, tmp_path: Path, copy: Copy, content: str, words: str
) -> None:
    copy("good")
    bad = tmp_path / "runs" / "bad"
    bad.mkdir()
    (bad / "log.jsonl").write_bytes(content.encode("latin-1"))
    status, text, _ = cli("runs", tmp_path / "runs")
    assert status == 0
    assert f"{bad}: log.jsonl: {words}" in text
    assert f"{tmp_path}/runs/good" in text
    _, text, _ = cli("runs", tmp_path / "runs", "--json")
    states = {Path(run["run"]).name: run["state"] for run in json.loads(text)}
    assert states == {"good": "finished", "bad": "broken"}


def test_figures_before_a_bad_line_are_shown(cli: Cli, tmp_path: Path, copy: Copy) -> None:
    folder = copy("run")
    whole = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(whole[:2]) + whole[2][:30])
    _, text, _ = cli("runs", tmp_path / "runs", "--json")
    (run,) = json.loads(text)
    assert (run["state"], run["epochs"]) == ("broken", 1)
    assert run["faults"] == ["log.jsonl: line 3 is not complete"]


def test_state_of_a_run_while_it_is_trained(digits: Path, tmp_path: Path) -> None:
    header, *epochs, result = lines(digits.parent)
    header["run"]["tracker"] = "none"
    with RunLogger(tmp_path, header, epochs[:1], 12) as logger:
        assert recorded_run.read(tmp_path).state == "running"
    assert recorded_run.read(tmp_path).state == "stopped"
    with RunLogger(tmp_path, header, epochs, 24) as logger:
        logger.log(result)
    assert recorded_run.read(tmp_path).state == "finished"


def test_folder_without_runs_is_an_error(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("runs", tmp_path)
    assert status == 2
    assert f"latentd train --out {tmp_path}/NAME" in err
    status, _, err = cli("runs", tmp_path / "missing")
    assert status == 2
    assert "is not a folder" in err


def test_every_sort_takes_runs_without_figures(tmp_path: Path, copy: Copy) -> None:
    copy("good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "log.jsonl").write_text("{}\n")
    for name in listing.SORTS:
        assert len(listing.collect(tmp_path / "runs", name)) == 2


def test_compare_runs_shows_what_differs_and_by_how_much(
    cli: Cli, tmp_path: Path, copy: Copy
) -> None:
    a = copy("a", -50.0, learning_rate=0.002)
    versions = {"versions": {"torch": "2.9.0"}}
    b = copy("b", -48.5, learning_rate=0.01, header=versions)
    evaluated(a)
    status, text, err = cli("compare-runs", a, b, "--out", tmp_path / "curves.png")
    assert (status, err) == (0, "")
    rows = {line[:22].strip(): line[22:].split() for line in text.splitlines() if "  " in line}
    assert rows["learning_rate"] == ["0.002", "0.01"]
    assert "latent_size" not in text
    assert rows["torch"][1] == "2.9.0"
    assert rows["validation ELBO"] == ["-50.00", "-48.50", "+1.50"]
    assert rows["NLL"] == ["48.12", "-"]
    assert "data: the same" in text
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.asarray(picture).std() > 10  # not blank


def test_compare_runs_gives_no_differences_of_different_kinds(cli: Cli, copy: Copy) -> None:
    a = copy("a")
    b = copy("b", -900.0, header={"elbo": "ELBO of the bytes themselves"})
    _, text, _ = cli("compare-runs", a, b)
    assert "Nats of different kinds (A: ELBO of a density" in text
    assert "-850.00" not in text
    c = copy("c", data="npz:rows.npz")
    _, text, _ = cli("compare-runs", a, c)
    assert "Nats of different data." in text


def test_compare_runs_names_other_splits(cli: Cli, copy: Copy) -> None:
    split = {"train": 1455, "validation": 162, "test": 180, "digest": "0" * 64}
    a, b = copy("a"), copy("b", -49.0, header={"split": split}, seed=1)
    _, text, _ = cli("compare-runs", a, b)
    assert "The runs have different rows or splits" in text
    assert "+1.00" in text


def test_log_of_an_older_release_has_the_defaults_of_newer_flags(cli: Cli, copy: Copy) -> None:
    a, b = copy("a"), copy("b")
    header, *rest = lines(b)
    del header["run"]["tracker"], header["run"]["augment_flip"], header["versions"]
    (b / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (header, *rest)))
    status, out, _ = cli("compare-runs", a, b, "--json")
    assert status == 0
    assert json.loads(out)["settings"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("A",), "Name 2 to 26 runs"),
        (("A", "A", "--out", "curves.gif"), "must end in .png"),
        (("A", "missing"), "missing/log.jsonl cannot be read: No such file"),
        (("A", "BROKEN"), "holds no run that can be read"),
    ],
)
def test_compare_runs_refuses(
    cli: Cli, tmp_path: Path, copy: Copy, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "log.jsonl").write_text("{}\n")
    places = {"A": copy("a"), "BROKEN": tmp_path / "broken"}
    status, _, err = cli("compare-runs", *(places.get(word, word) for word in words))
    assert status == 2
    assert message in err
