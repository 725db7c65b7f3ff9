"""The loop: learning, determinism, resuming, skipping, failing, being interrupted."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training import checkpoint, data, networks
from training.config import Config
from training.errors import RunFailed
from training.run import Run, evaluate

Cli = Callable[..., tuple[int, str, str]]
TRAIN = (sys.executable, "-m", "training", "train")
TINY = ("--epochs", 4, "--hidden", 16, "--latent-size", 3)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "cpu_seconds", "run")}
        for line in lines(folder)
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit: weights, optimiser, generators and log, in last.pt and best.pt."""
    assert untimed(a) == untimed(b)
    for name in ("last.pt", "best.pt"):
        first, second = checkpoint.load(a / name), checkpoint.load(b / name)
        for part in ("weights", "generators"):
            left, right = getattr(first, part), getattr(second, part)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left), (name, part)
        torch.testing.assert_close(first.optimiser, second.optimiser, rtol=0, atol=0)


def tiny_run(**settings: Any) -> Run:
    config = Config(**{"hidden": 16, "latent_size": 3, **settings})
    dataset = data.load(config)
    return Run(networks.fitted(config, dataset.spec.shape), dataset, torch.device("cpu"))


@pytest.fixture
def whole(cli: Cli, tmp_path: Path) -> Path:
    """An uninterrupted run of four epochs."""
    status, _, err = cli("train", "--out", tmp_path / "whole", *TINY)
    assert status == 0, err
    return tmp_path / "whole"


def test_training_leaves_the_processor_as_it_was(whole: Path) -> None:
    smallest = np.array([5e-324])
    assert (smallest * 1.0 > 0).all(), "numbers this small are still flushed to zero"


def test_a_real_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    done = subprocess.run(
        [*TRAIN, "--data", "digits", "--epochs", "12", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "training: 100%" in done.stderr  # the bar
    assert "Traceback" not in done.stderr
    header, *epochs, test = lines(out)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [header, *epochs, test]
    assert header["run"]["net"] == "mlp"
    assert [header["split"][part] for part in ("train", "validation", "test")] == [1455, 162, 180]
    assert [line["epoch"] for line in epochs] == list(range(1, 13))
    for line in epochs:
        assert line["unit"] == "nats per example"
        assert line["skipped_steps"] == 0
        for part in ("train", "validation"):
            elbo, terms = line[f"{part}_elbo"], (line[f"{part}_distortion"], line[f"{part}_rate"])
            assert math.isclose(elbo, -sum(terms), rel_tol=1e-6, abs_tol=1e-4)
    assert epochs[-1]["validation_elbo"] > epochs[0]["validation_elbo"] + 15
    assert epochs[-1]["validation_rate"] > 1  # the code is used
    assert test["best_epoch"] == max(epochs, key=lambda line: line["validation_elbo"])["epoch"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["best.pt", "last.pt", "log.jsonl", "tensorboard"]
        + [f"{name}.png" for name in ("curves", "interpolation", "reconstructions", "samples")]
    )
    best = checkpoint.load(out / "best.pt")
    assert best.history == epochs[: test["best_epoch"]]
    assert best.split == header["split"]
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 10, path.name  # not blank


def test_losses_are_summed_over_a_row_and_averaged_over_rows() -> None:
    run = tiny_run(likelihood="bernoulli")
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    terms = evaluate(run.model, run.dataset.test.x, seed=0)
    assert math.isclose(terms["distortion"], 64 * math.log(2), rel_tol=1e-6)  # logits of 0
    assert terms["rate"] == 0


def test_the_seed_decides_everything(cli: Cli, whole: Path, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "again", *TINY)[0] == 0
    assert_same_run(whole, tmp_path / "again")
    assert cli("train", "--out", tmp_path / "other", *TINY, "--seed", 1)[0] == 0
    assert untimed(whole) != untimed(tmp_path / "other")


@pytest.mark.parametrize("extra", [(), ("--likelihood", "bernoulli", "--binarisation", "dynamic")])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    cli: Cli, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--out", whole, *TINY, *extra)[0] == 0
    assert cli("train", "--out", parts, *TINY, *extra, "--epochs", 2)[0] == 0
    status, out, err = cli("train", "--out", parts, "--resume", "--epochs", 4)
    assert status == 0, err
    assert [json.loads(line).get("epoch") for line in out.splitlines()] == [None, 3, 4, None]
    assert_same_run(whole, parts)


def test_an_interrupted_run_says_how_to_go_on_and_loses_nothing(
    cli: Cli, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "interrupted"
    process = subprocess.Popen(
        [*TRAIN, "--out", out, *map(str, TINY), "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.stdout
    while '"epoch": 2' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.rstrip().endswith(
        f"latentd-train: interrupted. Continue with: python -m training train --out {out} --resume"
    )
    assert "Traceback" not in err
    epochs = len(checkpoint.load(out / "last.pt").history) + 2
    assert cli("train", "--out", out, "--resume", "--epochs", epochs)[0] == 0
    assert cli("train", "--out", tmp_path / "straight", *TINY, "--epochs", epochs)[0] == 0
    assert_same_run(out, tmp_path / "straight")


def test_a_finished_run_resumes_to_itself(cli: Cli, whole: Path) -> None:
    before = untimed(whole)
    assert cli("train", "--out", whole, "--resume")[0] == 0
    assert untimed(whole) == before


def test_a_run_is_not_overwritten(cli: Cli, whole: Path) -> None:
    before = (whole / "last.pt").read_bytes()
    status, _, err = cli("train", "--out", whole, *TINY)
    assert status == 2
    assert "already holds a run; continue it with --resume" in err
    assert (whole / "last.pt").read_bytes() == before


def test_resume_takes_its_settings_from_the_checkpoint(cli: Cli, whole: Path) -> None:
    status, _, err = cli("train", "--out", whole, "--resume", "--latent-size", 5)
    assert status == 2
    assert "--latent-size is 3 in" in err
    status, _, err = cli("train", "--out", whole, "--resume", "--epochs", 3)
    assert status == 2
    assert "--epochs 3: this run already has 4" in err


def test_resume_notices_changed_data(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 4), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    arguments = ("train", "--data", f"npz:{tmp_path / 'rows.npy'}", "--out", tmp_path / "run")
    assert cli(*arguments, *TINY)[0] == 0
    rows[0, 0] ^= 1
    np.save(tmp_path / "rows.npy", rows)
    status, _, err = cli(*arguments, "--resume")
    assert status == 2
    assert "has changed since this run began" in err


def test_out_cannot_be_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = cli("train", "--out", tmp_path / "file", *TINY)
    assert status == 2
    assert "cannot be made" in err


def test_tensorboard_has_the_numbers_of_the_log(whole: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (whole / "tensorboard").iterdir()
    # Records of length, its checksum, an event, its checksum (TensorFlow's record format).
    data, plotted = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            plotted[value.tag, event.step] = value.simple_value
        data = data[16 + length :]
    for line in lines(whole)[1:-1]:
        for tag, name in (("elbo/train", "train_elbo"), ("rate/validation", "validation_rate")):
            assert math.isclose(plotted[tag, line["epoch"]], line[name], rel_tol=1e-6)
    assert ("learning_rate", 4) in plotted


def test_a_run_out_of_patience_stops_and_stays_stopped(cli: Cli, tmp_path: Path) -> None:
    """With so large a step that it soon gets worse."""
    out = tmp_path / "run"
    flags = (*TINY, "--learning-rate", 0.3, "--epochs", 60, "--patience", 3)
    assert cli("train", "--out", out, *flags)[0] == 0
    _, *epochs, test = lines(out)
    assert len(epochs) < 60
    assert len(epochs) == test["best_epoch"] + 3
    before = untimed(out)
    assert cli("train", "--out", out, "--resume")[0] == 0
    assert untimed(out) == before
    assert cli("train", "--out", out, "--resume", "--patience", 5)[0] == 0
    assert len(lines(out)) > len(before)


def test_validation_comes_when_it_is_due(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "run", *TINY, "--validate-every", 3)[0] == 0
    _, *epochs, test = lines(tmp_path / "run")
    assert [line["epoch"] for line in epochs if "validation_elbo" in line] == [3, 4]  # and the last
    assert test["best_epoch"] in (3, 4)


def test_the_average_is_what_is_validated_and_saved(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "run", *TINY, "--ema", 0.5, "--batch-size", 500)[0] == 0
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved.trained is not None
    run = tiny_run(ema=0.5, batch_size=500, epochs=4)
    follows = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    for step in range(12):
        if not run.step_number:
            order = torch.randperm(len(run.dataset.train), generator=run.order)
        run.step(run.dataset.train.x[order[500 * run.step_number :][:500]])
        decay = min(0.5, (1 + step) / (10 + step))
        for name, weight in run.model.state_dict().items():
            follows[name] = decay * follows[name] + (1 - decay) * weight
        if run.step_number == run.steps:
            run.history.append({})
            run._begin()
    torch.testing.assert_close(saved.trained, dict(run.model.state_dict()))
    torch.testing.assert_close(saved.weights, follows)
    assert not torch.equal(saved.weights["encoder.1.weight"], saved.trained["encoder.1.weight"])
    expected = evaluate(saved.model(), run.dataset.validation.x, 0)["elbo"]
    assert lines(tmp_path / "run")[4]["validation_elbo"] == expected


def test_bfloat16_learns_what_float32_does() -> None:
    ends = {}
    for precision in ("float32", "bfloat16"):
        run = tiny_run(precision=precision, hidden=64, learning_rate=5e-3)
        ends[precision] = [run.epoch() for _ in range(8)][-1]
        assert all(weight.dtype == torch.float32 for weight in run.model.parameters())
    elbos = [line["validation_elbo"] for line in ends.values()]
    assert elbos[0] != elbos[1]
    assert abs(elbos[0] - elbos[1]) < 2


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_a_non_finite_step_is_skipped_and_counted(optimiser: str) -> None:
    run = tiny_run(optimiser=optimiser)
    parameter = next(run.model.parameters())
    gradients = iter(range(1000))
    parameter.register_hook(lambda grad: grad * math.nan if next(gradients) == 1 else grad)
    line = run.epoch()
    assert line["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert math.isfinite(line["train_elbo"])
    assert run.epoch()["skipped_steps"] == 0


def test_a_diverged_run_fails_in_a_sentence() -> None:
    run = tiny_run()
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match=r"diverged in epoch 1: 12 of 12 steps .* --learning-rate"):
        run.epoch()


def test_a_long_gradient_is_shortened() -> None:
    run = tiny_run(max_gradient_norm=0.01)
    run.step(run.dataset.train.x[:32])
    norms = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
    assert math.isclose(torch.stack(norms).norm().item(), 0.01, rel_tol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"likelihood": "bernoulli"}, "not a likelihood"),
        ({"likelihood": "bernoulli", "binarisation": "dynamic"}, "ELBO of binarised pixels"),
        ({"likelihood": "gaussian"}, "ELBO of a density"),
        ({"model": "ae"}, "no ELBO"),
    ],
)
def test_the_log_says_what_its_numbers_are(
    cli: Cli, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
    assert cli("train", "--out", tmp_path / "run", *TINY, *flags, "--epochs", 1)[0] == 0
    assert words in lines(tmp_path / "run")[0]["elbo"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_nets_learn_the_same(cli: Cli, whole: Path, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "run", *TINY, "--compile")[0] == 0
    eager, compiled = (checkpoint.load(out / "last.pt") for out in (whole, tmp_path / "run"))
    torch.testing.assert_close(compiled.weights, eager.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_default_digits_are_told_apart_after_reconstruction(cli: Cli, tmp_path: Path) -> None:
    """A classifier trained on the pixels must read the reconstructions of test rows."""
    from sklearn.svm import SVC

    from training.model import render

    assert cli("train", "--out", tmp_path / "run")[0] == 0
    dataset = data.load(Config())
    model = checkpoint.load(tmp_path / "run" / "best.pt").model()
    with torch.no_grad():
        again = render(model, model.decode(model.encode(dataset.test.x)[0]))
    judge = SVC(C=10, gamma=0.05)
    judge.fit(dataset.train.x.flatten(1).numpy() / 255, dataset.train.y)
    assert dataset.test.y is not None
    assert judge.score(again.flatten(1).numpy() / 255, dataset.test.y) >= 0.95
