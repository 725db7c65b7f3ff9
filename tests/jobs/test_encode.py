"""Encode jobs: only the encoder runs, and only z is written, with the digest of its bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentd import bundle
from latentd.client import Client
from latentd.jobs.plan import OutputSpec
from latentd.jobs.reconstruct import LocalReconstructor, load_bundle
from latentd.readers.rows import Chunk
from tests.jobs.conftest import Jobs
from tests.support.spatial_bundle import blocks, encoded, publish_spatial


@pytest.fixture(scope="module")
def spatial_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spatial")
    publish_spatial(root)
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixty pictures of three sizes, one of them damaged."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(60):
        [row] = blocks(1, 16 + 8 * (number % 3), 32, seed=number)
        Image.fromarray(row).save(folder / f"{number:02}.png")
    (folder / "17.png").write_bytes(b"no image")
    return folder


def test_latents_of_several_sizes_are_read_in_three_lines(spatial_bundles, pictures, tmp_path):
    jobs = Jobs(spatial_bundles / "spatial" / "1")
    assert jobs.run(pictures, tmp_path / "out", "--encode", "mean") == 0
    table = pq.read_table(tmp_path / "out" / "shards")
    pairs = zip(table["z"].to_numpy(), table["z_shape"].to_numpy(), strict=True)
    z = [values.reshape(shape) for values, shape in pairs]
    assert table.column_names == ["row", "id", "z", "z_shape"]
    kept = [number for number in range(60) if number != 17]
    assert table["row"].to_pylist() == kept
    for number, found in zip(kept, z, strict=True):
        x = blocks(1, 16 + 8 * (number % 3), 32, seed=number)
        np.testing.assert_allclose(found, encoded(x)[0], atol=1e-5)


def test_latents_name_their_bundle(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "out", "--encode", "mean") == 0
    digest = load_bundle(jobs.bundle).digest
    success = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert success["bundle"] == {"model": "toy", "version": 1, "digest": digest}
    for shard in (tmp_path / "out" / "shards").glob("*.parquet"):
        assert pq.read_metadata(shard).metadata[b"latentd.bundle"].decode() == digest
    assert not (tmp_path / "out" / "sheet.html").exists()


def test_mean_and_draws_are_those_of_the_server(
    jobs, npy, x, tmp_path, toy_bundles, module_servers
):
    server = module_servers(toy_bundles)
    with Client(server.target) as client:
        mean = client.encode(x).mean
        drawn = client.encode(x, draw=True, seed=7).z
    there = ("--server", server.target)
    decoded = server.metric("latentd_batch_rows_count", graph="decoder")
    for flags, expected in ((("mean",), mean), (("draw", "--seed", 7), drawn)):
        for name, target in {"here": (), "there": there}.items():
            output = tmp_path / f"{name}_{flags[0]}"
            assert jobs.run(npy, output, "--encode", *flags, *target) == 0
            z = np.stack(jobs.table(output)["z"].to_numpy())
            np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-7)
    assert server.metric("latentd_batch_rows_count", graph="decoder") == decoded
    assert server.metric("latentd_batch_rows_count", graph="encoder") > 0


def test_draws_through_a_server_equal_those_of_the_bundle(
    spatial_bundles, pictures, tmp_path, module_servers
):
    jobs = Jobs(spatial_bundles / "spatial" / "1")
    flags = ("--encode", "draw", "--seed", 3, "--z-dtype", "float16")
    assert jobs.run(pictures, tmp_path / "here", *flags) == 0
    server = ("--server", module_servers(spatial_bundles).target)
    assert jobs.run(pictures, tmp_path / "there", *flags, *server) == 0
    here, there = jobs.table(tmp_path / "here"), jobs.table(tmp_path / "there")
    assert here.schema.equals(there.schema)
    assert here["z_shape"].equals(there["z_shape"])
    assert here["row"].equals(there["row"])
    for one, other in zip(here["z"].to_numpy(), there["z"].to_numpy(), strict=True):
        assert one.dtype == np.float16
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_float16_is_the_rounded_latent(jobs, npy, tmp_path, form):
    flags = ("--encode", "draw", "--format", form)
    assert jobs.run(npy, tmp_path / "wide", *flags) == 0
    assert jobs.run(npy, tmp_path / "half", *flags, "--z-dtype", "float16") == 0
    wide, half = (read_z(tmp_path / name, form) for name in ("wide", "half"))
    assert (wide.dtype, half.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(wide.astype(np.float16), half)


def read_z(output: Path, form: str) -> np.ndarray:
    shards = sorted((output / "shards").glob(f"*.{form}"))
    if form == "npy":
        return np.concatenate([np.load(shard)["z"] for shard in shards])
    return np.stack(pq.read_table(output / "shards")["z"].to_numpy())


def test_only_the_encoder_runs(jobs, npy, tmp_path, publish_toy):
    other = publish_toy(tmp_path / "other", levels=100)
    decoder = (other / bundle.DECODER).read_bytes()
    broken = Jobs(publish_toy(tmp_path / "bundles", decoder_onnx=decoder))
    assert broken.run(npy, tmp_path / "whole") == 78  # its decoder is another one
    assert broken.run(npy, tmp_path / "out", "--encode", "mean") == 0
    assert jobs.run(npy, tmp_path / "good", "--encode", "mean") == 0
    a, b = (jobs.table(tmp_path / name)["z"] for name in ("out", "good"))
    assert a.equals(b)


def test_latent_beyond_float16_is_quarantined(vector_jobs):
    wanted = OutputSpec(scores=False, latents=False, encode="mean", z_dtype="float16")
    run = LocalReconstructor(load_bundle(vector_jobs.bundle), wanted, "cpu").run
    x = np.array([[1, 2, 3], [1, 2, 1e5]], np.float32)
    results = run(Chunk(np.array([5, 6]), ["a", "b"], x, []))
    assert results.z.tolist() == [[1, 2, 3]]
    assert [(row.row, row.reason) for row in results.bad] == [
        (6, "the latent of this row is not finite in float16")
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--encode", "mean", "--draw"), "--encode writes only z: use it without --draw"),
        (("--encode", "mean", "--scores"), "use it without --scores"),
        (("--z-dtype", "float16"), "--z-dtype float16 is for --encode only"),
    ],
)
def test_flags_that_contradict_each_other_are_rejected(jobs, npy, tmp_path, capsys, flags, said):
    assert jobs.run(npy, tmp_path / "out", *flags) == 78
    assert said in capsys.readouterr().err


def test_autoencoder_has_no_draws(jobs, npy, tmp_path, publish_toy, capsys):
    ae = Jobs(publish_toy(tmp_path / "bundles", posterior="point"))
    assert ae.run(npy, tmp_path / "no", "--encode", "draw") == 78
    assert "--encode draw: this model encodes each row to a point" in capsys.readouterr().err
    assert ae.run(npy, tmp_path / "out", "--encode", "mean") == 0
    assert jobs.table(tmp_path / "out").column_names == ["row", "id", "z", "z_shape"]
