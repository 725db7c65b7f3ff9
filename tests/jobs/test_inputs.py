"""Every kind of input gives the same rows; a bad row does not affect others."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from latentd.bundle import DataSpec
from latentd.errors import BadData, ConfigError
from latentd.readers.files import open_file
from latentd.readers.parquet import ParquetColumnReader
from latentd.readers.rows import check_signature, make_chunk
from latentd.training.readers.image_folder import ImageOptions, read_pictures
from tests.support.sized import takes

BYTES = DataSpec("image", (4, 4), "uint8", (0, 255))
FLOATS = DataSpec("vector", (3,), "float32", (-1, 1))
UNBOUNDED = dataclasses.replace(FLOATS, bounded=False)
BEYOND = "holds 1.5, outside the model's range -1 to 1; its likelihood is not defined there"


def png(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(row).save(file, "PNG")
    return file.getvalue()


def idx(x: np.ndarray) -> bytes:
    return bytes((0, 0, 8, 3)) + struct.pack(">3I", *x.shape) + x.tobytes()


def write_table(path, x, kind):
    values = {
        "binary": lambda: pa.array([row.tobytes() for row in x], pa.binary()),
        "fixed": lambda: pa.array([row.tobytes() for row in x], pa.binary(16)),
        "png": lambda: pa.array([png(row) for row in x], pa.binary()),
        "struct": lambda: pa.array([{"bytes": png(row), "path": None} for row in x]),
        "list": lambda: pa.array(x.reshape(-1, 16).tolist(), pa.list_(pa.uint8())),
        "wide": lambda: pa.array(x.reshape(-1, 16).tolist(), pa.list_(pa.int64())),
        "fixed_list": lambda: pa.array(x.reshape(-1, 16).tolist(), pa.list_(pa.uint8(), 16)),
    }[kind]()
    table = pa.table({"label": pa.array(range(len(x))), "image": values})
    pq.write_table(table, path, row_group_size=30)


def write(folder, x, kind):
    """Write an input of this kind; returns the value for --input."""
    folder.mkdir()
    if kind == "npy":
        np.save(folder / "x.npy", x)
    elif kind == "npy with channels":
        np.save(folder / "x.npy", x[..., None])
        return folder / "x.npy"
    elif kind == "npz":
        np.savez(folder / "x.npz", x=x, y=np.arange(3))
    elif kind == "compressed npz":
        np.savez_compressed(folder / "x.npz", y=np.arange(3), rows=x)
        return f"{folder / 'x.npz'}:rows"
    elif kind == "idx":
        (folder / "train-images-idx3-ubyte").write_bytes(idx(x))
    elif kind == "idx.gz":
        (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
    elif kind == "glob":
        for i in range(0, len(x), 30):
            np.save(folder / f"{i:03d}.npy", x[i : i + 30])
        return folder / "*.npy"
    elif kind in ("images", "glob of images"):
        for i, row in enumerate(x):
            (folder / f"sub{i // 50}").mkdir(exist_ok=True)
            (folder / f"sub{i // 50}" / f"{i:03d}.png").write_bytes(png(row))
        return folder if kind == "images" else folder / "*" / "*.png"
    elif kind == "url":
        np.save(folder / "x.npy", x)
        return f"file://{folder}/x.npy"
    else:
        write_table(folder / "x.parquet", x, kind)
    return next(folder.iterdir())


KINDS = [
    *("npy with channels", "npz", "compressed npz", "idx", "idx.gz", "glob", "url"),
    *("images", "glob of images"),
    *("binary", "fixed", "png", "struct", "list", "wide", "fixed_list"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_rows(jobs, x, tmp_path, kind):
    source = write(tmp_path / "in", x, kind)
    flags = ("--reconstruction", "raw", "--no-latents", "--no-scores")
    assert jobs.run(source, tmp_path / "out", *flags) == 0
    table = jobs.table(tmp_path / "out")
    pixels = np.frombuffer(b"".join(table["reconstruction"].to_pylist()), np.uint8)
    np.testing.assert_array_equal(pixels.reshape(-1, 4, 4), x)
    assert table["row"].to_pylist() == list(range(len(x)))


def test_inputs_of_several_kinds_are_one_job(jobs, x, tmp_path):
    sources = [write(tmp_path / kind.replace(" ", ""), x, kind) for kind in KINDS]
    assert jobs.run(sources, tmp_path / "out", "--processes", 2) == 0
    table = jobs.table(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(len(x) * len(KINDS)))
    elbo = table["elbo"].to_numpy().reshape(len(KINDS), len(x))
    np.testing.assert_allclose(elbo, np.broadcast_to(elbo[0], elbo.shape), rtol=1e-6)


def test_remote_store_is_read(jobs, x, tmp_path):
    memory = MemoryFileSystem()
    file = io.BytesIO()
    np.save(file, x)
    memory.pipe("/set/a.npy", file.getvalue())
    memory.pipe("/set/b.npy", file.getvalue())
    memory.pipe("/pictures/1/a.png", png(x[0]))
    memory.pipe("/pictures/2/b.png", png(x[1]))
    sources = ["memory://set/*.npy", "memory://pictures"]
    assert jobs.run(sources, tmp_path / "out") == 0
    assert jobs.table(tmp_path / "out")["id"].to_pylist()[-2:] == ["1/a.png", "2/b.png"]
    assert len(jobs.table(tmp_path / "out")) == 2 * len(x) + 2


def test_bad_images_are_quarantined(jobs, x, tmp_path):
    folder = write(tmp_path / "in", x[:10], "images")
    (folder / "cut.png").write_bytes(png(x[0])[:-30])
    (folder / "empty.png").write_bytes(b"")
    (folder / "large.png").write_bytes(png(np.zeros((5, 4), np.uint8)))
    (folder / "color.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    (folder / "notes.txt").write_text("not an image, and not expected to be")
    assert jobs.run(folder, tmp_path / "out") == 0
    reasons = jobs.quarantine(tmp_path / "out")
    assert set(reasons) == {"cut.png", "empty.png", "large.png", "color.png"}
    assert "damaged" in reasons["cut.png"]
    assert "not a readable image" in reasons["empty.png"]
    assert "expected 4 x 4 pixels (width x height), got 4 x 5" in reasons["large.png"]
    assert "mode RGB" in reasons["color.png"]
    assert len(jobs.table(tmp_path / "out")) == 10


def test_bad_table_values_are_quarantined_by_id(jobs, x, tmp_path):
    good = png(x[0])
    values = [good, None, b"short", good[:-30], x[1].tobytes()]
    table = pa.table({"image": values, "name": ["a", "b", "c", "d", "e"]})
    pq.write_table(table, tmp_path / "x.parquet")
    flags = ("--id-column", "name", "--column", "image")
    assert jobs.run(tmp_path / "x.parquet", tmp_path / "out", *flags) == 0
    assert set(jobs.quarantine(tmp_path / "out")) == {"b", "c", "d"}
    assert jobs.table(tmp_path / "out")["id"].to_pylist() == ["a", "e"]
    assert jobs.table(tmp_path / "out")["row"].to_pylist() == [0, 4]


def test_table_of_paths_is_quarantined(jobs, x, tmp_path):
    values = [{"bytes": png(x[0]), "path": None}, {"bytes": None, "path": "a.png"}, None]
    pq.write_table(pa.table({"image": values}), tmp_path / "x.parquet")
    assert jobs.run(tmp_path / "x.parquet", tmp_path / "out") == 0
    reasons = jobs.quarantine(tmp_path / "out")
    assert set(reasons) == {"1", "2"}
    assert "its bytes are null; paths are not read" in reasons["1"]


def test_invalid_numbers_are_bad_rows():
    values = np.array([[0, 1, -1], [0, np.nan, 0], [0, 0, 1.5], [np.inf, 0, 0]], np.float64)
    chunk = make_chunk(values, ["a", "b", "c", "d"], 7, FLOATS)
    assert chunk.rows.tolist() == [7]
    assert chunk.x.dtype == np.float32
    assert [(row.row, row.id, row.reason) for row in chunk.bad] == [
        (8, "b", "holds NaN or infinity"),
        (9, "c", BEYOND),
        (10, "d", "holds NaN or infinity"),
    ]


def test_model_of_all_numbers_counts_values_outside_its_range():
    values = np.array([[0, 1 + 2**-52, -1], [2, -3, 0], [0, 1 + 2**-20, 0], [np.inf, 2, 0]])
    chunk = make_chunk(values, ["a", "b", "c", "d"], 0, UNBOUNDED)
    assert chunk.rows.tolist() == [0, 1, 2]
    assert chunk.counts_outside_range.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(chunk.x, np.array([[0, 1, -1], [2, -3, 0], [0, 1, 0]], "f4"))
    assert [row.reason for row in chunk.bad] == ["holds NaN or infinity"]


@pytest.mark.parametrize("bounded", [True, False])
def test_integers_beyond_bytes_are_bad_rows(bounded):
    values = np.array([[0] * 16, [256] * 16, [-1] * 16, [255] * 16])
    chunk = make_chunk(values, ["a", "b", "c", "d"], 0, dataclasses.replace(BYTES, bounded=bounded))
    assert chunk.rows.tolist() == [0, 3]
    assert chunk.x.dtype == np.uint8
    assert [row.id for row in chunk.bad] == ["b", "c"]
    assert all("not a byte (0 to 255)" in row.reason for row in chunk.bad)


@pytest.mark.parametrize(
    ("dtype", "shape", "x"),
    [("float32", (4, 4), BYTES), ("uint8", (4, 5), BYTES), ("uint8", (3,), FLOATS)],
)
def test_arrays_of_other_dtypes_and_shapes_are_rejected(dtype, shape, x):
    with pytest.raises(ConfigError, match=r"a\.npy has rows of"):
        check_signature(np.dtype(dtype), shape, takes(x), "a.npy")


def test_table_is_read_forward_and_backward(x, tmp_path):
    write_table(tmp_path / "x.parquet", x, "fixed_list")
    reader = ParquetColumnReader(str(tmp_path / "x.parquet"), takes(BYTES))
    for start, stop in [(0, 5), (5, 40), (80, 100), (33, 34), (0, 100), (99, 100)]:
        chunk = reader.read(start, stop)
        np.testing.assert_array_equal(chunk.x, x[start:stop])
        assert chunk.rows.tolist() == list(range(start, stop))
    reader.close()


@pytest.mark.parametrize("kind", ["npy", "idx", "idx.gz", "compressed npz", "binary"])
def test_truncated_input_is_bad_data(jobs, x, tmp_path, capsys, kind):
    source = write(tmp_path / "in", x, kind)
    path = next((tmp_path / "in").iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    assert jobs.run(source, tmp_path / "out") == 65
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_damaged_table_is_bad_data(x, tmp_path):
    write_table(tmp_path / "x.parquet", x, "binary")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[200:500] = bytes(300)
    (tmp_path / "x.parquet").write_bytes(data)
    reader = ParquetColumnReader(str(tmp_path / "x.parquet"), takes(BYTES))
    with pytest.raises(BadData, match="damaged"):
        reader.read(0, 100)
    reader.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.npy", "no such file"),
        ("empty", "the folder is empty"),
        ("notes", "no supported files (1 file found, 0 taken, 1 left out: 1 .txt"),
        ("gone://x/y.npy", "Cannot reach"),
    ],
)
def test_input_without_files_is_rejected(jobs, tmp_path, capsys, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    source = name if "://" in name else tmp_path / name
    assert jobs.run(source, tmp_path / "out") == 78
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_images_are_resized_and_rotated_as_in_training(jobs, tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    large = np.random.default_rng(0).integers(0, 256, (3, 9, 7), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: rotate by 90 degrees
    for i, row in enumerate(large):
        Image.fromarray(row).save(folder / f"{i}.png", exif=exif if i == 2 else None)
    wanted = read_pictures(folder, ImageOptions("4x4")).pixels
    source = folder
    if kind == "table":
        source = tmp_path / "x.parquet"
        files = [(folder / f"{i}.png").read_bytes() for i in range(3)]
        pq.write_table(pa.table({"x": pa.array(files, pa.binary())}), source)
    flags = ("--fit", "resize", "--reconstruction", "raw")
    assert jobs.run(source, tmp_path / "out", *flags) == 0
    made = jobs.table(tmp_path / "out")["reconstruction"].to_pylist()
    pixels = np.frombuffer(b"".join(made), np.uint8)
    np.testing.assert_array_equal(pixels.reshape(wanted.shape), wanted)  # the toy model returns x
    assert jobs.run(source, tmp_path / "out", "--reconstruction", "raw") == 78


def test_images_of_other_sizes_are_quarantined_without_resize(jobs, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "in" / "a.png")
    assert jobs.run(tmp_path / "in", tmp_path / "out") == 0
    assert "got 7 x 9" in jobs.quarantine(tmp_path / "out")["a.png"]


def exif_that_pillow_cannot_write():
    """Orientation 6, and an XResolution of type SRATIONAL (-1, 0), as some cameras write it."""
    header = b"II*\0" + struct.pack("<IH", 8, 2)
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHII", 0x011A, 10, 1, 38)
    return b"Exif\0\0" + header + orientation + resolution + bytes(4) + struct.pack("<ii", -1, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_odd_files_do_not_end_the_job(jobs, x, tmp_path, processes):
    folder = write(tmp_path / "in", x[:30], "images")
    odd = Image.fromarray(np.zeros((4, 4), np.uint8))
    odd.save(folder / "photo.jpg", exif=exif_that_pillow_cannot_write())
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(png(x[0]))
    (folder / f"bad-{name}").write_bytes(b"no image")
    (folder / "broken.png").write_bytes(bytes(40))
    (folder / "much.bmp").write_bytes(b"BM" + bytes(12) + b"\xff" * 60)
    flags = ("--processes", processes, "--reconstruction", "raw")
    assert jobs.run(folder, tmp_path / "out", *flags) == 0
    reasons = jobs.quarantine(tmp_path / "out")
    assert set(reasons) == {r"bad-caf\xe9.png", "broken.png", "much.bmp"}
    ids = jobs.table(tmp_path / "out")["id"].to_pylist()
    assert len(ids) == 32
    assert {r"caf\xe9.png", "photo.jpg"} <= set(ids)


def test_folders_with_names_that_are_not_utf8(start_job, x, tmp_path):
    folder = write(tmp_path / os.fsdecode(b"caf\xe9"), x[:10], "images")
    output = tmp_path / os.fsdecode(b"r\xe9sultat")
    process = start_job(folder, output)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert r"sultat/shards" in said
    assert (output / "_SUCCESS").exists()


def test_unreadable_file_is_quarantined(jobs, x, tmp_path, monkeypatch):
    folder = write(tmp_path / "in", x[:30], "images")
    (folder / "closed.png").write_bytes(png(x[0]))
    opened = os.open

    def closed(path, *flags, **options):  # as for a user who is not root
        if str(path).endswith("closed.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *flags, **options)

    monkeypatch.setattr(os, "open", closed)
    assert jobs.run(folder, tmp_path / "out") == 0
    assert "Permission denied" in jobs.quarantine(tmp_path / "out")["closed.png"]


def test_errors_of_the_machine_quarantine_no_file(jobs, x, tmp_path, monkeypatch):
    folder = write(tmp_path / "in", x[:3], "images")

    def none_left(path, *flags, **options):
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        open_file(str(folder / "sub0" / "000.png"))


def test_found_files_are_counted_in_the_plan(jobs, x, tmp_path, capsys):
    folder = write(tmp_path / "in", x[:10], "images")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "live.heic").write_bytes(b"")
    assert jobs.run(folder, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "12 files found, 10 taken, 2 left out: 1 .heic (image format not supported), 1" in said
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["files"]["taken"] == 10
    assert sum(plan["files"]["left_out"].values()) == 2
    (folder / "._000.png").write_bytes(b"")  # skipped: the job is the same
    assert jobs.run(folder, tmp_path / "out") == 0


def test_linked_folders_are_read(jobs, x, tmp_path):
    elsewhere = write(tmp_path / "elsewhere", x[:8], "images")
    folder = write(tmp_path / "in", x[8:10], "images")
    (folder / "linked").symlink_to(elsewhere)
    assert jobs.run(folder, tmp_path / "out") == 0
    assert len(jobs.table(tmp_path / "out")) == 10


@pytest.mark.parametrize("kind", ["binary", "npy", "idx"])
def test_folder_of_shards_is_read(jobs, x, tmp_path, kind):
    (tmp_path / "in").mkdir()
    for i in range(0, len(x), 50):
        shard = write(tmp_path / "in" / f"part={i:02d}", x[i : i + 50], kind)
        shard.rename(shard.with_name(f"part{i:02d}-{shard.name}"))
    (tmp_path / "in" / "_SUCCESS").write_bytes(b"")
    assert jobs.run(tmp_path / "in", tmp_path / "out", "--reconstruction", "raw") == 0
    pixels = np.frombuffer(
        b"".join(jobs.table(tmp_path / "out")["reconstruction"].to_pylist()), np.uint8
    )
    np.testing.assert_array_equal(pixels.reshape(-1, 4, 4), x)


def test_tilde_means_the_home_folder(jobs, x, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "x.npz", rows=x, y=np.arange(3))
    assert jobs.run("~/x.npz:rows", tmp_path / "out") == 0


def test_wide_integers_are_read_as_bytes(jobs, x, tmp_path):
    values = x.astype(np.int64)
    values[7, 0, 0] = 300
    np.save(tmp_path / "x.npy", values)
    assert jobs.run(tmp_path / "x.npy", tmp_path / "out") == 0
    assert jobs.quarantine(tmp_path / "out") == {"7": "holds 300, which is not a byte (0 to 255)"}
