"""What a job writes: the right numbers for every row, for any executor and sharding."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from PIL import Image

from latentd import bundle
from latentd.bundle import LatentFormat, Manifest, RowFormat
from latentd.client import Client
from latentd.jobs.plan import OutputSpec
from latentd.jobs.reconstruct import LocalReconstructor, load_bundle
from latentd.readers.rows import Chunk
from latentd.shapes import Shape
from tests.jobs.conftest import Jobs, vector_graphs
from tests.support.onnx_graphs import npz, serialized

COLUMNS = ["row", "id", "reconstruction_error", "kl", "elbo", "mean", "log_var"]


def test_every_row_equals_the_servers_result(jobs, npy, x, tmp_path, toy_bundles, start_server):
    assert jobs.run(npy, tmp_path / "out", "--reconstruction", "raw") == 0
    table = jobs.table(tmp_path / "out")
    with Client(start_server(toy_bundles).target) as client:
        wanted, encoding = client.reconstruct(x, include_scores=True), client.encode(x)
    assert table.column_names == [*COLUMNS, "reconstruction"]
    assert table["row"].to_pylist() == list(range(len(x)))
    assert table["id"].to_pylist() == [str(i) for i in range(len(x))]
    for name in ("reconstruction_error", "kl", "elbo"):
        np.testing.assert_allclose(table[name].to_numpy(), getattr(wanted, name), rtol=1e-6)
    np.testing.assert_array_equal(np.stack(table["mean"].to_numpy()), encoding.mean)
    np.testing.assert_array_equal(np.stack(table["log_var"].to_numpy()), encoding.log_var)
    pixels = np.frombuffer(b"".join(table["reconstruction"].to_pylist()), np.uint8)
    np.testing.assert_array_equal(pixels.reshape(x.shape), x)  # the toy model returns x


def test_shards_read_as_one_table(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "out") == 0
    table = pq.read_table(tmp_path / "out" / "shards")
    assert table.equals(jobs.table(tmp_path / "out"))
    assert len(table) == 100


def test_png_reconstructions_are_images(jobs, npy, x, tmp_path):
    flags = ("--reconstruction", "png", "--no-latents", "--no-scores")
    assert jobs.run(npy, tmp_path / "out", *flags) == 0
    table = jobs.table(tmp_path / "out")
    assert table.column_names == ["row", "id", "reconstruction"]
    images = [np.asarray(Image.open(io.BytesIO(b))) for b in table["reconstruction"].to_pylist()]
    np.testing.assert_array_equal(images, x)


def test_npy_shards_have_the_same_numbers(jobs, npy, x, tmp_path):
    assert jobs.run(npy, tmp_path / "a", "--reconstruction", "raw") == 0
    assert jobs.run(npy, tmp_path / "b", "--reconstruction", "raw", "--format", "npy") == 0
    shards = sorted((tmp_path / "b" / "shards").glob("*.npy"))
    rows = np.concatenate([np.load(shard, mmap_mode="r") for shard in shards])
    table = jobs.table(tmp_path / "a")
    np.testing.assert_array_equal(rows["reconstruction"], x)
    np.testing.assert_array_equal(rows["row"], table["row"].to_numpy())
    np.testing.assert_array_equal(rows["elbo"], table["elbo"].to_numpy())
    np.testing.assert_array_equal(rows["mean"], np.stack(table["mean"].to_numpy()))


def test_draws_do_not_depend_on_shards(jobs, npy, x, tmp_path):
    for name, flags in {"a": (), "b": ("--shard-rows", 7, "--batch-rows", 3)}.items():
        assert jobs.run(npy, tmp_path / name, "--draw", "--seed", 3, *flags) == 0
    a, b = (jobs.table(tmp_path / name)["elbo"].to_numpy() for name in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jobs.run(npy, tmp_path / "c") == 0
    assert not np.allclose(a, jobs.table(tmp_path / "c")["elbo"].to_numpy())


def test_processes_and_machines_write_the_same_bytes(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "one") == 0
    assert jobs.run(npy, tmp_path / "two", "--processes", 2) == 0
    for index in (1, 0):
        flags = ("--shard-index", index, "--shard-count", 2)
        assert not (tmp_path / "shared" / "_SUCCESS").exists()
        assert jobs.run(npy, tmp_path / "shared", *flags) == 0
    wanted = jobs.content(tmp_path / "one")
    assert "_SUCCESS" in wanted
    assert jobs.content(tmp_path / "two") == wanted
    assert jobs.content(tmp_path / "shared") == wanted


def test_kubernetes_sets_the_shard_index(jobs, npy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert jobs.run(npy, tmp_path / "out", "--shard-count", 2) == 0
    assert sorted(p.name for p in (tmp_path / "out" / "shards").glob("_*.json")) == [
        "_00001.json",
        "_00003.json",
    ]
    assert "others are still running" in capsys.readouterr().out


def test_sheet_starts_with_the_largest_error(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "out") == 0
    errors = jobs.table(tmp_path / "out")["reconstruction_error"].to_numpy()
    page = (tmp_path / "out" / "sheet.html").read_text()
    shown = re.findall(r"<figcaption>(\d+): ([\d.-]+)<", page)
    assert shown[0] == (str(errors.argmax()), f"{errors.max():.1f}")
    assert [int(row) for row, _ in shown[:32]] == (-errors).argsort(kind="stable")[:32].tolist()
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.width > image.height > 100


def test_sheet_shows_equal_rows_once(jobs, x, tmp_path):
    rows = x.copy()
    rows[[3, *range(50, 95)]] = 71  # the toy's largest error, in more rows than a manifest has
    np.save(tmp_path / "x.npy", rows)
    assert jobs.run(tmp_path / "x.npy", tmp_path / "out", "--shard-rows", 50) == 0
    page = (tmp_path / "out" / "sheet.html").read_text()
    shown = re.findall(r"<figcaption>(\d+): ([^<]+)<", page)
    same = [text for row, text in shown if row == "3" or 50 <= int(row) < 95]
    assert len(same) == 1
    assert same[0].endswith("(and 45 with the same score)")
    assert len(re.findall("<img", page)) == 2 * len(shown) > 64


@pytest.mark.parametrize(("kind", "form"), [("npy", "parquet"), ("parquet", "npy")])
def test_values_outside_the_range_are_counted(vector_jobs, tmp_path, capsys, kind, form):
    rows = np.random.default_rng(0).uniform(0, 1, (60, 3))  # float64
    rows[7] = [1.4, 0.5, -0.2]
    rows[30, 0] = 1.0000000000000002
    source = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(source, rows)
    else:
        pq.write_table(pa.table({"x": pa.array(rows.tolist(), pa.list_(pa.float64()))}), source)
    assert vector_jobs.run(source, tmp_path / "out", "--format", form) == 0
    assert "1 rows hold values outside the range" in capsys.readouterr().out
    if form == "npy":
        shards = sorted((tmp_path / "out" / "shards").glob("*.npy"))
        table = np.concatenate([np.load(shard) for shard in shards])
        outside, errors = table["values_outside_range"], table["reconstruction_error"]
    else:
        table = vector_jobs.table(tmp_path / "out")
        outside, errors = (
            table[name].to_numpy() for name in ("values_outside_range", "reconstruction_error")
        )
    assert outside.dtype == np.uint32
    assert outside.tolist() == [2 * (row == 7) for row in range(60)]
    # The toy's decoder gives half of z, with a log-std of 0.
    wanted = 0.5 * np.square(rows / 2).sum(axis=1) + 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(errors, wanted, rtol=1e-5)


def test_server_counts_values_outside_the_range(
    vector_jobs, tmp_path, publish_vectors, start_server
):
    publish_vectors(tmp_path / "bundles")
    rows = np.random.default_rng(0).uniform(0, 1, (60, 3)).astype(np.float32)
    rows[7], rows[9] = [1.4, 0.5, -0.2], [np.nan, 0, 0]
    np.save(tmp_path / "x.npy", rows)
    assert vector_jobs.run(tmp_path / "x.npy", tmp_path / "here") == 0
    server = ("--server", start_server(tmp_path / "bundles").target)
    assert vector_jobs.run(tmp_path / "x.npy", tmp_path / "there", *server) == 0
    here, there = (vector_jobs.table(tmp_path / name) for name in ("here", "there"))
    assert here["values_outside_range"].to_pylist()[7] == 2
    assert there["values_outside_range"].equals(here["values_outside_range"])
    a, b = (table["elbo"].to_numpy() for table in (here, there))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert vector_jobs.quarantine(tmp_path / "there") == {"9": "holds NaN or infinity"}


def test_vectors_have_a_sheet_of_line_plots(vector_jobs, tmp_path):
    rows = np.random.default_rng(0).uniform(0, 1, (100, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    assert vector_jobs.run(tmp_path / "x.npy", tmp_path / "out") == 0
    page = (tmp_path / "out" / "sheet.html").read_text()
    figures = page.split("<figure>")[1:]
    errors = vector_jobs.table(tmp_path / "out")["reconstruction_error"].to_numpy()
    assert f"<figcaption>{errors.argmax()}: " in figures[0]
    assert all(figure.count("<polyline") == 2 for figure in figures)
    assert (
        f"[1] {rows[errors.argmax()][1]:.4g}, reconstruction {rows[errors.argmax()][1]:.4g}"
        in figures[0]
    )
    assert "http" not in page.replace("http-equiv", "")
    assert not (tmp_path / "out" / "sheet.png").exists()


def poisoned(levels: int = 200) -> bytes:
    """The toy's encoder, which fails on rows whose first byte is `levels` or more."""
    constants = {
        "table": np.zeros(levels, np.float32),
        "255": np.float32(255),
        "two": np.float32(-2),
        "zero": np.float32(0),
        "flat": np.array([-1, 16], np.int64),
        "first": np.array(0, np.int64),
        "column": np.array([-1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "255"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat"], ["rows"]),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "flat"], ["numbers"]),
        helper.make_node("Gather", ["numbers", "first"], ["index"], axis=1),
        helper.make_node("Gather", ["table", "index"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["nothings"]),
        helper.make_node("Add", ["rows", "nothings"], ["mean"]),
        helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "two"], ["log_var"]),
    ]
    row = ("float32", (16,))
    return serialized(nodes, {"x": ("uint8", (4, 4))}, {"mean": row, "log_var": row}, constants)


def test_rows_that_fail_are_quarantined_alone(jobs, npy, x, tmp_path, publish_toy):
    folder = publish_toy(tmp_path / "bundles", encoder_onnx=poisoned())
    poison = {str(i) for i in np.flatnonzero(x[:, 0, 0] >= 200)}
    assert 3 < len(poison) < 50
    assert jobs.run(npy, tmp_path / "good") == 0
    assert type(jobs)(folder).run(npy, tmp_path / "out") == 0
    reasons = jobs.quarantine(tmp_path / "out")
    assert set(reasons) == poison
    assert all(reason.startswith("the model fails on this row") for reason in reasons.values())
    rows, good = jobs.table(tmp_path / "out"), jobs.table(tmp_path / "good")
    kept = [i for i in range(len(x)) if str(i) not in poison]
    assert rows["row"].to_pylist() == kept
    np.testing.assert_array_equal(rows["elbo"].to_numpy(), good["elbo"].to_numpy()[kept])
    success = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert success["written"] + success["quarantined"] == success["rows"] == len(x)


def test_batch_of_failing_rows_gives_no_rows(tmp_path, publish_toy):
    folder = publish_toy(tmp_path / "bundles", encoder_onnx=poisoned())
    run = LocalReconstructor(load_bundle(folder), OutputSpec(), "cpu").run
    x = np.full((3, 4, 4), 255, np.uint8)
    results = run(Chunk(np.array([5, 6, 9]), ["a", "b", "c"], x, []))
    assert [row.row for row in results.bad] == [5, 6, 9]
    assert results.mean.shape == (0, 16)
    assert results.elbo.shape == (0,)


class Broken:
    """A graph on a lost device."""

    def run(self, *_: object) -> None:
        raise RuntimeError("CUDA failure 719")


def test_broken_engine_quarantines_no_row(jobs, npy, x, tmp_path, monkeypatch, capsys):
    load = LocalReconstructor.__init__

    def load_then_lose(self, *given: object, **named: object) -> None:
        load(self, *given, **named)
        self._decoder = Broken()

    monkeypatch.setattr(LocalReconstructor, "__init__", load_then_lose)
    assert jobs.run(npy, tmp_path / "out") == 70
    assert "its own golden vectors: CUDA failure 719." in capsys.readouterr().err
    assert not list((tmp_path / "out" / "shards").iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--reconstruction", "png", "--format", "npy"), "Use --reconstruction raw"),
        (("--shard-index", 2, "--shard-count", 2), "must be less than --shard-count 2"),
    ],
)
def test_invalid_flags_are_rejected(jobs, npy, tmp_path, capsys, flags, said):
    assert jobs.run(npy, tmp_path / "out", *flags) == 78
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "plan.json").exists()


def test_autoencoder_has_no_scores_and_no_log_var(jobs, npy, tmp_path, publish_toy, capsys):
    ae = type(jobs)(publish_toy(tmp_path / "bundles", posterior="point"))
    assert ae.run(npy, tmp_path / "no", "--scores") == 78
    assert "--scores: this model encodes each row to a point" in capsys.readouterr().err
    assert ae.run(npy, tmp_path / "no", "--draw") == 78
    assert "--draw: this model encodes each row to a point" in capsys.readouterr().err
    assert ae.run(npy, tmp_path / "out") == 0
    assert "No scores: this model encodes each row to a point" in capsys.readouterr().out
    assert jobs.table(tmp_path / "out").column_names == ["row", "id", "mean"]


def test_bundles_of_format_1_give_the_same_results_as_before(jobs, tmp_path):
    folder = Path(__file__).parents[1] / "data" / "format1"
    with np.load(folder / "answers.npz") as file:
        answers = dict(file)
    np.save(tmp_path / "x.npy", answers["x"])
    assert type(jobs)(folder / "digits").run(tmp_path / "x.npy", tmp_path / "out") == 0
    table = jobs.table(tmp_path / "out")
    for name in ("mean", "log_var"):
        found = np.stack(table[name].to_numpy())
        np.testing.assert_allclose(found, answers[f"digits.{name}"], rtol=1e-5, atol=1e-6)
    for name in ("reconstruction_error", "kl", "elbo"):
        stored = answers[f"digits.{name}"]
        np.testing.assert_allclose(table[name].to_numpy(), stored, rtol=0, atol=1e-4)


@pytest.mark.parametrize("posterior", ["gaussian", "point"])
def test_model_without_a_range_or_a_likelihood(tmp_path, posterior):
    encoder, decoder = vector_graphs(3, -2.0, 2.0)
    rows = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    golden = npz(x=rows, mean=rows, log_var=np.full_like(rows, -2), z=rows, decoded_x=rows)
    manifest = Manifest(
        model="points",
        x=RowFormat("vector", Shape.parse([3]), "float32"),
        z=LatentFormat(Shape.parse([3])),
        likelihood=None,
        posterior=posterior,
        opset=18,
        preprocessing="none",
        parity={},
    )
    files = {bundle.ENCODER: encoder, bundle.DECODER: decoder, bundle.GOLDEN: golden}
    jobs = Jobs(bundle.publish(tmp_path / "bundles", manifest, files))
    x = np.random.default_rng(0).normal(0, 1, (60, 3))
    x[5, 0], x[7, 1] = np.inf, np.nan
    np.save(tmp_path / "x.npy", x)
    assert jobs.run(tmp_path / "x.npy", tmp_path / "out") == 0
    latents = ["mean", "log_var"] if posterior == "gaussian" else ["mean"]
    assert jobs.table(tmp_path / "out").column_names == ["row", "id", *latents]
    assert jobs.quarantine(tmp_path / "out") == dict.fromkeys("57", "holds NaN or infinity")
    page = (tmp_path / "out" / "sheet.html").read_text()
    assert "polyline" in page
    assert not re.search(r"\b(nan|inf)\b", page)
