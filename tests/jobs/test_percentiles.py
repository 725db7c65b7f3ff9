"""Percentiles of a row's scores among the training rows, if the bundle has them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from latentd import bundle
from latentd.bundle import SCORES

LEVELS = [0.0, 1.0, 50.0, 99.0, 100.0]


@pytest.fixture(scope="session")
def known(jobs, x, tmp_path_factory):
    """Jobs on a toy bundle whose training rows were half of x, and their scores."""
    folder = tmp_path_factory.mktemp("known")
    np.save(folder / "x.npy", x)
    assert jobs.run(folder / "x.npy", folder / "out") == 0
    table = jobs.table(folder / "out")
    half = {name: table[name].to_numpy()[::2].astype(float) for name in SCORES}
    quantiles = {name: np.percentile(values, LEVELS).tolist() for name, values in half.items()}
    scores = {"rows": len(x) // 2, "levels": LEVELS} | quantiles
    toy = bundle.load(jobs.bundle)
    manifest = dataclasses.replace(toy.manifest, training_scores=scores)
    return type(jobs)(bundle.publish(folder / "models", manifest, toy.files)), scores


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_each_score_has_a_percentile(known, npy, tmp_path, form):
    jobs, scores = known
    assert jobs.run(npy, tmp_path / "out", "--format", form) == 0
    if form == "parquet":
        table = jobs.table(tmp_path / "out")
        columns = {name: table[name].to_numpy() for name in table.column_names}
    else:
        shards = sorted((tmp_path / "out" / "shards").glob("*.npy"))
        rows = np.concatenate([np.load(shard) for shard in shards])
        columns = {name: rows[name] for name in rows.dtype.names}
    for name in SCORES:
        values, shares = columns[name].astype(float), columns[f"{name}_percentile"]
        assert shares.dtype == np.float32
        lowest, _, middle, _, highest = scores[name]
        assert (shares[values <= lowest] == 0).all()
        assert (shares[values >= highest] == 100).all()
        np.testing.assert_array_equal(shares > 50, values > middle)
        assert 1 < (shares == 100).sum() < 10 or 1 < (shares == 0).sum() < 10
        assert (np.diff(shares[np.argsort(values, kind="stable")]) >= 0).all()


def test_bundle_without_training_scores_has_no_percentiles(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "out") == 0
    assert not any("percentile" in name for name in jobs.table(tmp_path / "out").column_names)


def test_no_scores_omits_percentiles(known, npy, tmp_path):
    assert known[0].run(npy, tmp_path / "out", "--no-scores") == 0
    names = known[0].table(tmp_path / "out").column_names
    assert names == ["row", "id", "mean", "log_var"]


def test_server_provides_training_scores(known, npy, tmp_path, start_server):
    jobs, _ = known
    server = start_server(jobs.bundle.parents[1])
    assert jobs.run(npy, tmp_path / "here") == 0
    assert jobs.run(npy, tmp_path / "there", "--server", server.target) == 0
    here, there = jobs.table(tmp_path / "here"), jobs.table(tmp_path / "there")
    assert here.schema.equals(there.schema)
    for name in SCORES:
        a, b = (t[f"{name}_percentile"].to_numpy() for t in (here, there))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=0.05)
