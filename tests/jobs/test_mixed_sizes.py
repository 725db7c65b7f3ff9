"""Jobs over rows of several sizes: every row at its own size, in order, exactly once."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentd import bundle
from latentd.bundle import SCORES
from latentd.errors import ConfigError
from latentd.jobs import plan, sizes
from latentd.jobs.inputs import RowReader
from latentd.jobs.plan import Plan
from tests.jobs.conftest import Jobs
from tests.support.spatial_bundle import blocks, encoded, publish_spatial

HERE = Path(__file__).parent
SIDES = (16, 24, 32, 64)


@pytest.fixture(scope="module")
def spatial_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spatial")
    publish_spatial(root, likelihood=True)
    return root


@pytest.fixture(scope="module")
def spatial(spatial_bundles: Path) -> Jobs:
    """Jobs through a model with free axes and a likelihood."""
    return Jobs(spatial_bundles / "spatial" / "1")


def random_rows(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures of random colors; few sizes, so that batches have several rows."""
    choose = np.random.default_rng(seed)
    shapes = choose.choice(SIDES, (count, 2))
    return [blocks(1, int(h), int(w), seed=i)[0] for i, (h, w) in enumerate(shapes)]


def write_pictures(folder: Path, rows: Sequence[np.ndarray]) -> Path:
    folder.mkdir()
    for number, row in enumerate(rows):
        Image.fromarray(row).save(folder / f"{number:03}.png")
    return folder


def latents(table: pa.Table, name: str = "mean") -> list[np.ndarray]:
    pairs = zip(table[name].to_numpy(), table["z_shape"].to_numpy(), strict=True)
    return [values.reshape(shape) for values, shape in pairs]


def plan_of(output: Path) -> Plan:
    return Plan.from_json((output / "plan.json").read_bytes())


def test_each_picture_is_taken_at_its_size(spatial, tmp_path):
    rows = random_rows(60)
    folder = write_pictures(tmp_path / "in", rows)
    (folder / "010.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((30, 32, 3), np.uint8)).save(folder / "020.png")
    Image.fromarray(np.zeros((264, 33, 3), np.uint8)).save(folder / "030.png")
    assert spatial.run(folder, tmp_path / "out", "--reconstruction", "png") == 0
    table = spatial.table(tmp_path / "out")
    kept = [i for i in range(60) if i not in (10, 20, 30)]
    assert table["row"].to_pylist() == kept
    assert table["id"].to_pylist() == [f"{i:03}.png" for i in kept]
    assert table["x_shape"].to_pylist() == [list(rows[i].shape) for i in kept]
    for i, z, png in zip(kept, latents(table), table["reconstruction"].to_pylist(), strict=True):
        np.testing.assert_allclose(z, encoded(rows[i][None])[0], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), rows[i])
    reasons = spatial.quarantine(tmp_path / "out")
    assert set(reasons) == {"010.png", "020.png", "030.png"}
    assert reasons["020.png"] == (
        "h is 30; expected a multiple of 8 from 16 to 256. The nearest valid length is 32. "
        "Pass --fit resize or --fit crop to bring every picture to 32 x 32 pixels (width x height)"
    )
    assert reasons["030.png"].startswith(
        "h is 264; expected a multiple of 8 from 16 to 256. w is 33; expected a multiple of 8 from "
        "16 to 256. The nearest valid lengths are h 256 and w 32. Pass --fit"
    )
    assert (tmp_path / "out" / "sheet.png").exists()


def test_results_have_the_bits_of_jobs_of_one_size(spatial, tmp_path):
    rows = random_rows(80)
    flags = ("--shard-rows", 1000, "--batch-rows", 5, "--reconstruction", "raw")
    folder = write_pictures(tmp_path / "in", rows)
    assert spatial.run(folder, tmp_path / "out", *flags) == 0
    mixed = spatial.table(tmp_path / "out")
    reader = RowReader(plan_of(tmp_path / "out"), tmp_path / "out")
    batches = [chunk.rows.tolist() for chunk in reader.read(0, 80)]
    reader.close()
    for size in {row.shape for row in rows}:
        same = [i for i, row in enumerate(rows) if row.shape == size]
        assert [b for b in batches if b[0] in same] == [
            same[at : at + 5] for at in range(0, len(same), 5)
        ]
        source, output = tmp_path / f"{size}.npy", tmp_path / f"{size}"
        np.save(source, np.stack([rows[i] for i in same]))
        assert spatial.run(source, output, *flags) == 0
        alone, part = spatial.table(output), mixed.take(same)
        for name in alone.column_names[2:]:
            assert part[name].equals(alone[name]), name


def test_batches_have_rows_of_one_size(spatial, tmp_path):
    folder = write_pictures(tmp_path / "in", random_rows(60))
    (folder / "007.png").write_bytes(b"no image")
    assert spatial.run(folder, tmp_path / "out") == 0
    reader = RowReader(plan_of(tmp_path / "out"), tmp_path / "out")
    chunks = list(reader.read(0, 60))
    reader.close()
    assert sorted(row for chunk in chunks for row in chunk.rows) == [*range(7), *range(8, 60)]
    assert [bad.row for chunk in chunks for bad in chunk.bad] == [7]
    assert all(len(chunk.rows) <= 8 for chunk in chunks)
    assert len(chunks) <= 60 / 8 + len(SIDES) ** 2


@pytest.mark.slow
def test_job_killed_at_any_step_loses_and_doubles_no_row(spatial, tmp_path):
    folder = write_pictures(tmp_path / "in", random_rows(40))
    (folder / "013.png").write_bytes(b"no image")
    flags = ("--shard-rows", 20, "--draw", "--seed", 3)
    assert spatial.run(folder, tmp_path / "whole", *flags) == 0
    expected = spatial.content(tmp_path / "whole")
    assert spatial.table(tmp_path / "whole")["row"].to_pylist() == [*range(13), *range(14, 40)]
    command = spatial.command(folder, "unused", *flags)
    at = command.index("--output")
    driver = [sys.executable, str(HERE.parent / "support" / "kill_points.py"), str(tmp_path)]
    done = subprocess.run(
        [*driver, *command[:at], *command[at + 2 :]], **spatial.popen_arguments(), check=True
    )
    kills = [json.loads(line[7:]) for line in done.stdout.splitlines() if "KILLED" in line]
    assert len(kills) > 60, done.stderr
    for kill in kills:
        assert (kill["status"], kill["again"]) == (-signal.SIGKILL, 0), kill
        assert kill["torn"] == [], kill
        assert spatial.content(Path(kill["output"])) == expected, kill


def test_processes_write_the_same_bytes(spatial, tmp_path):
    folder = write_pictures(tmp_path / "in", random_rows(60))
    np.save(tmp_path / "x.npy", blocks(30, 24, 48))
    sources = [folder, tmp_path / "x.npy"]
    assert spatial.run(sources, tmp_path / "one") == 0
    assert spatial.run(sources, tmp_path / "two", "--processes", 2) == 0
    assert spatial.content(tmp_path / "one") == spatial.content(tmp_path / "two")
    assert spatial.table(tmp_path / "one")["row"].to_pylist() == list(range(90))


def test_changed_picture_changes_no_other_row(spatial, tmp_path):
    rows = random_rows(40)
    folder = write_pictures(tmp_path / "in", rows)
    assert spatial.run(folder, tmp_path / "out", "--shard-rows", 50) == 0
    before = spatial.table(tmp_path / "out")
    changed = folder / "005.png"
    content = changed.read_bytes()
    output = tmp_path / "out"
    (output / "shards" / "00000.parquet").unlink()
    Image.fromarray(rows[6]).save(changed)
    reader = RowReader(plan_of(output), output)
    chunks = list(reader.read(0, 40))
    reader.close()
    [bad] = [bad for chunk in chunks for bad in chunk.bad]
    assert (bad.row, bad.reason) == (5, "the file changed after the job was planned")
    changed.write_bytes(content)
    assert spatial.run(folder, output, "--shard-rows", 50) == 0
    assert spatial.table(output).equals(before)


def test_resize_gives_the_default_size(spatial, tmp_path):
    folder = write_pictures(tmp_path / "in", random_rows(20))
    Image.fromarray(np.zeros((30, 33, 3), np.uint8)).save(folder / "003.png")
    assert spatial.run(folder, tmp_path / "out", "--fit", "resize") == 0
    table = spatial.table(tmp_path / "out")
    assert table["z_shape"].to_pylist() == [[4, 4, 4]] * 20
    assert not (tmp_path / "out" / "plan.sizes").exists()


def test_rerun_with_resize_names_the_option(spatial, tmp_path, capsys):
    folder = write_pictures(tmp_path / "in", random_rows(20))
    assert spatial.run(folder, tmp_path / "out", "--shard-rows", 0) == 0
    assert spatial.run(folder, tmp_path / "out", "--shard-rows", 0, "--fit", "resize") == 78
    assert "different settings (fit refuse -> resize). Rerun" in capsys.readouterr().err
    Image.fromarray(blocks(1, 16, 16)[0]).save(folder / "020.png")
    assert spatial.run(folder, tmp_path / "out", "--shard-rows", 0) == 78
    said = f"different settings (inputs added, removed or changed: {folder}). Rerun"
    assert said in capsys.readouterr().err


def test_rerun_with_another_column_names_it(spatial, tmp_path, capsys):
    rows = [row.tobytes() for row in blocks(4, 32, 32)]
    pq.write_table(pa.table({"a": rows, "b": rows}), tmp_path / "x.parquet")
    assert spatial.run(tmp_path / "x.parquet", tmp_path / "out", "--column", "a") == 0
    assert spatial.run(tmp_path / "x.parquet", tmp_path / "out", "--column", "b") == 78
    assert "different settings (column a -> b). Rerun" in capsys.readouterr().err


def test_npy_output_has_one_size(spatial, tmp_path, capsys):
    folder = write_pictures(tmp_path / "in", random_rows(20))
    assert spatial.run(folder, tmp_path / "out", "--format", "npy") == 78
    assert "an array has rows of one size" in capsys.readouterr().err
    wide = write_pictures(tmp_path / "wide", list(blocks(30, 16, 64)))
    (wide / "000.png").write_bytes(b"no image")
    flags = ("--format", "npy", "--reconstruction", "raw", "--shard-rows", 1)
    assert spatial.run(wide, tmp_path / "wide_out", *flags) == 0
    shards = sorted((tmp_path / "wide_out" / "shards").glob("*.npy"))
    table = np.concatenate([np.load(shard) for shard in shards])
    assert table["mean"].shape == (29, 4, 2, 8)
    np.testing.assert_array_equal(table["reconstruction"], blocks(30, 16, 64)[1:])


def test_table_of_image_files_of_several_sizes(spatial, tmp_path):
    rows, files = random_rows(40), []
    for row in rows:
        file = io.BytesIO()
        Image.fromarray(row).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": files}), tmp_path / "x.parquet", row_group_size=7)
    assert spatial.run(tmp_path / "x.parquet", tmp_path / "out") == 0
    table = spatial.table(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(40))
    for row, z in zip(rows, latents(table), strict=True):
        np.testing.assert_allclose(z, encoded(row[None])[0], atol=1e-5)


def test_array_of_a_size_that_is_not_valid_is_rejected(spatial, tmp_path, capsys):
    np.save(tmp_path / "x.npy", blocks(3, 264, 32))
    assert spatial.run(tmp_path / "x.npy", tmp_path / "out") == 78
    assert "h is 264; expected a multiple of 8 from 16 to 256" in capsys.readouterr().err


def test_large_rows_have_small_batches_and_shards(spatial, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 200_000)
    rows = [*random_rows(50), blocks(1, 256, 256)[0], *random_rows(30, 1)]
    folder = write_pictures(tmp_path / "in", rows)
    assert spatial.run(folder, tmp_path / "out", "--shard-rows", 0, "--batch-rows", 128) == 0
    made = plan_of(tmp_path / "out")
    shards = [made.shard(i) for i in range(made.shards)]
    assert [row for shard in shards for row in shard] == list(range(81))
    assert max(len(shard) for shard in shards) > 5
    for shard in shards:
        assert len(shard) == 1 or sum(rows[i].nbytes for i in shard) <= 200_000
    for limit in (20_000, 100_000):
        reader = RowReader(dataclasses.replace(made, batch_bytes=limit), tmp_path / "out")
        chunks = list(reader.read(0, 81))
        reader.close()
        assert all(len(chunk.rows) == 1 or chunk.x.nbytes <= limit for chunk in chunks)
        assert max(len(chunk.rows) for chunk in chunks) > 5
    assert spatial.table(tmp_path / "out")["row"].to_pylist() == list(range(81))


def test_server_gives_the_rows_of_its_bundle(spatial, spatial_bundles, tmp_path, module_servers):
    target = module_servers(spatial_bundles).target
    folder = write_pictures(tmp_path / "in", random_rows(50))
    (folder / "011.png").write_bytes(b"no image")
    for name, flags in {"mean": (), "draw": ("--draw", "--seed", 7)}.items():
        flags = (*flags, "--reconstruction", "raw")
        here, there = tmp_path / f"here_{name}", tmp_path / f"there_{name}"
        assert spatial.run(folder, here, *flags) == 0
        assert spatial.run(folder, there, *flags, "--server", target) == 0
        a, b = spatial.table(here), spatial.table(there)
        assert a.schema.equals(b.schema)
        for column in ("row", "id", "z_shape", "x_shape"):
            assert a[column].equals(b[column]), column
        np.testing.assert_allclose(a["elbo"].to_numpy(), b["elbo"].to_numpy(), rtol=1e-5)
        for one, other in zip(latents(a), latents(b), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        assert spatial.quarantine(here) == spatial.quarantine(there)


@pytest.fixture(scope="module")
def scored(spatial: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Jobs through a bundle that knows the scores of training rows, of the default size."""
    known = bundle.load(spatial.bundle)
    scores = {"rows": 2, "levels": [0.0, 100.0]} | {name: [-1e9, 1e9] for name in SCORES}
    manifest = dataclasses.replace(known.manifest, training_scores=scores)
    return Jobs(bundle.publish(tmp_path_factory.mktemp("scored"), manifest, known.files))


def test_only_rows_of_the_default_size_have_percentiles(scored, tmp_path):
    rows = [*random_rows(40), blocks(1, 32, 32)[0], blocks(1, 16, 64)[0]]
    folder = write_pictures(tmp_path / "in", rows)
    assert scored.run(folder, tmp_path / "out", "--no-latents") == 0
    table = scored.table(tmp_path / "out")
    for name in SCORES:
        assert table[name].null_count == 0
        column = table[f"{name}_percentile"]
        assert str(column.type) == "float"
        assert [value is not None for value in column.to_pylist()] == [
            row.shape == (32, 32, 3) for row in rows
        ]


@pytest.mark.parametrize("side", [16, 32])
def test_npy_has_nan_for_percentiles_of_other_sizes(scored, tmp_path, side):
    np.save(tmp_path / "x.npy", blocks(3, side, side))
    assert scored.run(tmp_path / "x.npy", tmp_path / "out", "--format", "npy") == 0
    table = np.load(tmp_path / "out" / "shards" / "00000.npy")
    assert np.isnan(table["elbo_percentile"]).tolist() == [side == 16] * 3


def test_sheet_compares_rows_of_several_sizes_by_value(spatial, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    folder = write_pictures(tmp_path / "in", [*blocks(2, 256, 256), noise, *blocks(2, 24, 24)])
    assert spatial.run(folder, tmp_path / "out") == 0
    errors = spatial.table(tmp_path / "out")["reconstruction_error"].to_numpy()
    assert errors.argmax() < 2
    page = (tmp_path / "out" / "sheet.html").read_text()
    assert "Largest errors per value" in page
    [first, *_] = re.findall(r"<figcaption>([^<]+)<", page)
    assert first == f"002.png: {errors[2]:,.1f}, {errors[2] / noise.size:,.3g} per value"


@pytest.mark.parametrize("consecutive", [False, True])
def test_batches_are_a_partition(consecutive):
    lengths = np.random.default_rng(0).choice([0, 8, 16], (200, 2)).astype("<u4")
    lengths[lengths.min(axis=1) == 0] = 0
    made = sizes.batches(lengths, lambda size: 3 if size == (8, 8) else 5, consecutive)
    assert sorted(np.concatenate(made).tolist()) == list(range(200))
    for rows in made:
        known = {tuple(size) for size in lengths[rows].tolist() if any(size)}
        assert len(known) <= 1
        assert len(rows) <= (3 if known == {(8, 8)} else 5)
        assert (np.diff(rows) > 0).all()
        assert not consecutive or (np.diff(rows) == 1).all()


def test_model_without_a_likelihood_has_no_scores(tmp_path, capsys):
    jobs = Jobs(publish_spatial(tmp_path / "bundles"))
    folder = write_pictures(tmp_path / "in", random_rows(10))
    assert jobs.run(folder, tmp_path / "out") == 0
    assert "No scores: this model defines no likelihood." in capsys.readouterr().out
    names = ["row", "id", "mean", "log_var", "z_shape"]
    assert jobs.table(tmp_path / "out").column_names == names
    assert jobs.run(folder, tmp_path / "no", "--scores") == 78
    assert "--scores: this model defines no likelihood." in capsys.readouterr().err


def test_shortened_file_of_sizes_is_refused(tmp_path):
    path = tmp_path / "plan.sizes"
    path.write_bytes(bytes(3 * 8 - 3))
    with closing(sizes.SizeFile(path, axes=2)) as file:
        assert file.read(0, 2).shape == (2, 2)
        with pytest.raises(ConfigError, match="is shorter than the plan says"):
            file.read(0, 3)
