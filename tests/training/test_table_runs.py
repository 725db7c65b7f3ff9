"""A table from its CSV file to a server and a job: train, evaluate, export, sample, score."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latentd.__main__ import main
from latentd.client import Client
from latentd.training import checkpoint, data
from latentd.training.model import gaussian_kl
from tests.support.server import server_starter
from tests.training.conftest import Cli

ROWS = 300
SETTINGS = ("--hidden-size", 12, "--latent-size", 3, "--tracker", "none", "--threads", 1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sensors of unequal scales, categories, and gaps."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("table") / "sensors.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "volts", "pascal", "state", "alarm"])
        for row in range(ROWS):
            state = rng.integers(3)
            volts, pascal = rng.normal(state, 0.2), rng.normal(1e5 + 4e3 * state, 300)
            name = ("off", "idle", "busy")[state] if row % 40 else ""
            pascal_text = f"{pascal:.1f}" if row % 30 else ""
            writer.writerow([f"r{row}", f"{volts:.4f}", pascal_text, name, str(state == 2)])
    return path


def test_a_table_is_trained_evaluated_exported_served_and_scored(
    cli: Cli, table: Path, tmp_path: Path
) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    source = ("--data", f"table:{table}", "--ignore-columns", "id", "--missing", "mean")
    status, _, err = cli("train", *source, *SETTINGS, "--epochs", 20, "--out", run)
    assert status == 0, err
    assert "missing values in column 'pascal' (10), 'state' (8) of 300 rows" in err
    header = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert header["elbo"] == (
        "ELBO of the columns as they are: a density in the units of their numbers"
    )
    assert header["run"]["std"] == "column"
    with (run / "samples.csv").open(newline="") as file:
        samples = list(csv.DictReader(file))
    assert len(samples) == 1000
    assert 9e4 < float(samples[0]["pascal"]) < 1.2e5
    assert {row["state"] for row in samples} <= {"off", "idle", "busy", "(other)"}
    assert (run / "columns.png").stat().st_size > 1000
    assert "volts (reconstructed)" in (run / "reconstructions.csv").read_text().splitlines()[0]

    status, out, err = cli("evaluate", run, "--importance-samples", 20)
    assert status == 0, err
    assert "columns as the data has them, in their own units" in out
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["columns"]) == {"volts", "pascal", "state", "alarm"}
    assert result["columns"]["pascal"]["sample_std"] == pytest.approx(3300, rel=0.5)

    status, _, err = cli(
        "export", "--checkpoint", run / "best.pt", "--bundles", models, "--name", "s"
    )
    assert status == 0, err
    manifest = json.loads((models / "s" / "1" / "manifest.json").read_text())
    check_medians(run, manifest["training_scores"]["median_contributions"])
    volts, pascal, state, alarm = manifest["x"]["columns"]
    assert (volts["name"], pascal["name"]) == ("volts", "pascal")
    assert pascal["fill_value"] == pascal["mean"] == pytest.approx(1.04e5, rel=0.01)
    assert (state["levels"], state["fill_value"]) == (["busy", "idle", "off"], 3)
    assert alarm["levels"] == ["false", "true"]
    check_served(models, table, run, tmp_path)


@torch.no_grad()
def check_medians(run: Path, medians: list[float]) -> None:
    """They are of what each column of the training rows adds to -log p(x | z)."""
    saved = checkpoint.load(run / "best.pt")
    model, x = saved.model(), data.load(saved.config, known=saved.spec.columns).train.x
    terms = model.likelihood.terms(x, model.decode(model.encode(x)[0])).numpy()
    assert terms[:, 1].mean() > 5 + terms[:, 0].mean()  # the unit of pressure is large
    np.testing.assert_allclose(medians, np.median(terms, axis=0), rtol=1e-3, atol=1e-3)


def check_served(models: Path, table: Path, run: Path, tmp_path: Path) -> None:
    model = checkpoint.load(run / "best.pt").model()
    job = ["batch", "--input", str(table), "--id-column", "id", "--output", str(tmp_path / "job")]
    assert main([*job, "--bundle", str(models / "s"), "--processes", "1", "--provider", "cpu"]) == 0
    scored = pq.read_table(tmp_path / "job" / "shards").to_pydict()
    assert scored["id"] == [f"r{row}" for row in range(ROWS)]  # gaps are filled as in training
    with server_starter() as start:
        target = start(models).target
        with Client(target) as client:
            info = client.get_model()
            with table.open(newline="") as file:
                rows = list(csv.DictReader(file))
            x = info.to_rows({name: [row[name] or None for row in rows] for name in rows[0]})
            found = client.reconstruct(x, include_scores=True)
        with torch.no_grad():
            mean, log_var = model.encode(torch.from_numpy(x))
            error, kl = model.distortion(mean, torch.from_numpy(x)), gaussian_kl(mean, log_var)
        np.testing.assert_allclose(found.reconstruction_error, error, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scored["elbo"], -error - kl, rtol=1e-3, atol=1e-3)
        call = ["client", "sample", "--server", target, "--count", "40", "--seed", "1", "--draw-x"]
        for name in ("rows.csv", "rows.parquet"):
            assert main([*call, "--out", str(tmp_path / name)]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        as_text = list(csv.DictReader(file))
    as_parquet = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["state"] for row in as_text] == [row["state"] for row in as_parquet]
    assert [np.float32(row["pascal"]) for row in as_text] == [row["pascal"] for row in as_parquet]


def test_a_run_resumes_and_an_autoencoder_and_other_nets_learn_tables(
    cli: Cli, table: Path, tmp_path: Path
) -> None:
    source = ("--data", f"table:{table}", "--ignore-columns", "id,pascal,state", *SETTINGS)
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert cli("train", *source, "--epochs", 2, "--out", once)[0] == 0
    assert cli("train", *source, "--epochs", 1, "--out", twice)[0] == 0
    assert cli("train", "--out", twice, "--resume", "--epochs", 2)[0] == 0
    a, b = (checkpoint.load(run / "last.pt").weights for run in (once, twice))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for more in (
        ("--model", "ae", "--std", "shared"),
        ("--architecture", "gated", "--std", "pixel"),
        ("--architecture", "iwae", "--importance-samples", 3, "--fixed-std", 0.2),
    ):
        status, _, err = cli("train", *source, *more, "--epochs", 1, "--out", tmp_path / more[1])
        assert status == 0, err


def test_vectors_of_any_numbers_are_trained_exported_and_scored(cli: Cli, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal([0, 5e4, -3], [1, 800, 0.01], (200, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run, models = tmp_path / "run", tmp_path / "models"
    status, _, err = cli(
        "train", "--data", f"npz:{tmp_path / 'x.npy'}", *SETTINGS, "--epochs", 2, "--out", run
    )
    assert status == 0, err
    assert "not in 0 to 1: they stay as they are, and the model standardizes each column" in err
    status, _, err = cli(
        "export", "--checkpoint", run / "best.pt", "--bundles", models, "--name", "v"
    )
    assert status == 0, err
    far = x[:2] * np.float32(100)  # beyond the training rows: scored, not refused
    with server_starter() as start, Client(start(models).target) as client:
        info = client.get_model()
        assert (info.likelihood, info.parameters) == ("gaussian", ("mean", "log_std"))
        assert [column.name for column in info.x.columns] == ["x0", "x1", "x2"]
        near, beyond = client.score(x[:2]).elbo, client.score(far).elbo
        assert (beyond < near - 1000).all()
        assert client.reconstruct(x[:2]).x[0, 1] == pytest.approx(5e4, rel=0.1)
