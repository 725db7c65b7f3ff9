"""How a tracker follows log.jsonl, and what the training says of trackers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentd.training.trackers import known_run
from latentd.training.trackers.following import follow
from tests.support.runs import TINY

Cli = Callable[..., tuple[int, str, str]]

HEADER = {"run": {"data": "digits"}, "unit": "nats per example"}
EPOCHS = [{"epoch": n, "unit": "nats per example", "train_elbo": -1.0 / n} for n in (1, 2, 3)]
RESULT = {"best_epoch": 3, "unit": "nats per example", "test_elbo": -2.0}


class Kept:
    """A tracker that keeps everything in a list and fails where it is asked to."""

    def __init__(self, fails_at: tuple[int, ...] = ()) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails_at = list(fails_at)

    def open(self, out: Path, header: dict[str, Any]) -> Kept:
        self.calls.append(("open", header))
        return self

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        if number in self.fails_at:
            self.fails_at.remove(number)
            raise ConnectionError("no route")
        self.calls.append(("epoch", number, metrics))

    def result(self, epoch: int, metrics: dict[str, float], pictures: list[Path]) -> None:
        self.calls.append(("result", epoch, metrics, [path.name for path in pictures]))

    def close(self, finished: bool) -> None:
        self.calls.append(("close", finished))


def written(out: Path, *lines: dict[str, Any], partial: str = "") -> None:
    with (out / "log.jsonl").open("a") as log:
        log.writelines(f"{json.dumps(line)}\n" for line in lines)
        log.write(partial)


def test_tracker_gets_each_line_once_as_the_log_grows(tmp_path: Path) -> None:
    (tmp_path / "samples.png").touch()
    kept, seen = Kept(), []

    def training() -> Iterator[None]:
        for line in EPOCHS:
            text = json.dumps(line)
            written(tmp_path, partial=text[:20])
            yield  # a line that is not whole waits
            seen.append(len(kept.calls))
            written(tmp_path, partial=text[20:] + "\n")
            yield
            seen.append(len(kept.calls))
        written(tmp_path, RESULT)

    written(tmp_path, HEADER)
    assert follow(tmp_path, kept.open, training(), lambda error: pytest.fail(str(error)))
    assert seen == [1, 2, 2, 3, 3, 4]
    assert kept.calls == [
        ("open", HEADER),
        *(("epoch", line["epoch"], {"train_elbo": line["train_elbo"]}) for line in EPOCHS),
        ("result", 3, {"best_epoch": 3, "test_elbo": -2.0}, ["samples.png"]),
        ("close", True),
    ]


def test_tracker_that_failed_is_opened_again_and_gets_everything(tmp_path: Path) -> None:
    written(tmp_path, HEADER, *EPOCHS)
    kept, failures = Kept(fails_at=(2, 3)), []
    assert follow(tmp_path, kept.open, iter((None,)), failures.append)
    assert [str(error) for error in failures] == ["no route"] * 2
    starts = [i for i, call in enumerate(kept.calls) if call[0] == "open"]
    assert len(starts) == 3
    assert [call[:2] for call in kept.calls[starts[-1] + 1 :]] == [
        *(("epoch", n) for n in (1, 2, 3)),
        ("close", False),  # the run was stopped
    ]


def test_tracker_that_fails_at_the_end_lacks_something(tmp_path: Path) -> None:
    written(tmp_path, HEADER, *EPOCHS)
    failures: list[Exception] = []
    assert not follow(tmp_path, Kept(fails_at=(1, 1)).open, iter(()), failures.append)
    assert len(failures) == 2


def test_known_run_survives_a_damaged_file(tmp_path: Path) -> None:
    assert known_run.load(tmp_path, "mlflow") is None
    known_run.save(tmp_path, "mlflow", "abc")
    known_run.save(tmp_path, "wandb", "def")
    assert (known_run.load(tmp_path, "mlflow"), known_run.load(tmp_path, "wandb")) == ("abc", "def")
    (tmp_path / known_run.FILE).write_text("[")
    assert known_run.load(tmp_path, "mlflow") is None


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_tracker_that_is_not_installed_names_its_extra(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # as if it were not installed
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--tracker", tracker)
    assert status == 2
    assert f"pip install 'latentd[{tracker}]'" in err
    assert not (tmp_path / "run").exists()


def test_unknown_tracker_is_refused(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--tracker", "paper")
    assert status == 2
    assert "tensorboard, mlflow, wandb, none" in err.replace("'", "")
