"""`latentd client` as a user runs it: output, files, exit status."""

from __future__ import annotations

import json
import re
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentd import images
from latentd.client import Client
from tests.support.processes import running, wait_until

Run = Callable[..., tuple[int, str, str]]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 4), np.uint8)


def read_png(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_model_models_and_health(done: Callable[..., str], run: Run) -> None:
    said = done("model")
    assert said.startswith("toy version 1 (sha256:")
    assert "uint8 4 x 4, 0 to 255" in said
    assert json.loads(done("model", "--json"))["limits"]["max_rows"] == 4096
    assert done("models").endswith("ready  newest  default model\n")
    assert json.loads(done("models", "--json"))[0]["state"] == "ready"
    assert done("health") == "SERVING\n"
    assert run("health", "--service", "unknown") == (1, "SERVICE_UNKNOWN\n", "")


def test_models_marks_the_version_that_answers(
    publish_toy: Any, start_server: Any, done: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path("models")
    for model in ("toy", "other"):
        publish_toy(root, model=model)
        publish_toy(root, model=model)
    target = start_server(root, default_model="toy").target
    monkeypatch.setenv("LATENTD_SERVER", target)
    marks = {line.split(" (")[0]: line.split("  ")[2:] for line in done("models").splitlines()}
    assert marks == {
        "other version 1": [],
        "other version 2": ["newest"],
        "toy version 1": [],
        "toy version 2": ["newest", "default model"],
    }


def test_sample_writes_the_format_of_the_suffix(done: Callable[..., str], client: Client) -> None:
    rows = client.sample(12, seed=7, offset=3).x
    words = ("sample", "--count", "12", "--seed", "7", "--offset", "3", "--out")
    said = done(*words, "grid.png")
    assert said.startswith("12 rows of uint8 4 x 4 in grid.png, by toy version 1 (sha256:")
    assert said.endswith(", seed 7, offset 3.\n")
    assert Path("grid.png").read_bytes() == images.make_grid(rows)
    done(*words, "rows.npy")
    np.testing.assert_array_equal(np.load("rows.npy"), rows)
    done(*words, "rows.npz")
    with np.load("rows.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], rows)
        assert arrays["z"].shape == (12, 16)
        assert (arrays["seed"], arrays["offset"], arrays["model"]) == (7, 3, "toy")
    done(*words, "pictures")
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        f"{row:02d}.png" for row in range(3, 15)
    ]
    np.testing.assert_array_equal(read_png("pictures/14.png"), rows[11])


def test_chosen_seed_is_printed_and_reproduces(done: Callable[..., str]) -> None:
    said = done("sample", "--count", "2", "--out", "a.npy")
    seed = said.rpartition("seed ")[2].partition(",")[0]
    done("sample", "--count", "2", "--seed", seed, "--out", "b.npy")
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))


@pytest.mark.parametrize("out", ["rows.npy", "rows.npz", "pictures"])
def test_stream_writes_all_rows(done: Callable[..., str], client: Client, out: str) -> None:
    words = ("--count", "100", "--seed", "5", "--chunk-rows", "7", "--out", out)
    assert done("stream", *words).startswith(f"100 rows of uint8 4 x 4 in {out}, by toy")
    if out == "pictures":
        got: Any = np.stack([read_png(path) for path in sorted(Path(out).iterdir())])
    else:
        got = np.load(out)
        got = got["x"] if out == "rows.npz" else got
    np.testing.assert_array_equal(got, client.sample(100, seed=5).x)


def test_decode_inverts_encode(done: Callable[..., str], client: Client) -> None:
    np.savez("data.npz", x=pixels(9), others=pixels(3))
    done("encode", "data.npz", "--rows", "2:8", "--out", "latents.npz")
    with np.load("latents.npz") as arrays:
        np.testing.assert_array_equal(arrays["mean"], client.encode(pixels(9)[2:8]).mean)
        assert "z" not in arrays
    done("decode", "latents.npz", "--out", "back.npy")
    np.testing.assert_array_equal(np.load("back.npy"), pixels(9)[2:8])
    done("encode", "data.npz:others", "--draw", "--seed", "1", "--out", "drawn.npz")
    with np.load("drawn.npz") as arrays:
        assert arrays["seed"] == 1
        expected = client.decode(arrays["z"]).x
    done("decode", "drawn.npz", "--out", "back.npy")  # z is preferred to mean
    np.testing.assert_array_equal(np.load("back.npy"), expected)


def test_many_rows_are_sent_in_several_calls(done: Callable[..., str], client: Client) -> None:
    np.save("many.npy", np.tile(pixels(1), (5000, 1, 1)))
    done("encode", "many.npy", "--draw", "--seed", "3", "--out", "latents.npz")
    with np.load("latents.npz") as arrays:
        last = client.encode(pixels(1), draw=True, seed=3, offset=4999)
        np.testing.assert_array_equal(arrays["z"][4999:], last.z)  # type: ignore[arg-type]


def test_reconstruct_writes_rows_above_reconstructions(done: Callable[..., str]) -> None:
    x = pixels(18)  # two lines of them
    for row, png in enumerate(images.encode_files(x)):
        Path(f"{row:02d}.png").write_bytes(png)
    files = [f"{row:02d}.png" for row in range(18)]
    said = done("reconstruct", *files, "--out", "both.png", "--scores")
    white = np.full((14, 4, 4), 255, np.uint8)
    lines = [x[:16], x[:16], x[16:], white, x[16:], white]  # the toy model is its own inverse
    assert Path("both.png").read_bytes() == images.make_grid(np.concatenate(lines), columns=16)
    assert said.split()[:4] == ["row", "reconstruction_error", "kl", "elbo"]
    done("reconstruct", *files[:2], "--out", "both.npz")
    with np.load("both.npz") as arrays:
        np.testing.assert_array_equal(arrays["reconstruction"], x[:2])


def test_interpolate_accepts_files_seeds_and_latents(
    done: Callable[..., str], client: Client
) -> None:
    x = pixels(1)
    Path("one.png").write_bytes(images.encode_files(x)[0])
    np.save("z.npy", np.full(16, 0.5, np.float32))
    done("interpolate", "--start", "one.png", "--end", "seed:7@3", "--steps", "5", "--out", "w.npy")
    way = np.load("w.npy")
    np.testing.assert_array_equal(way[[0, 4]], [x[0], client.sample(1, seed=7, offset=3).x[0]])
    np.save("one.npy", x[0])
    done(
        "interpolate", "--start", "one.npy", "--end", "z:z.npy", "--path", "lerp", "--out", "w.png"
    )
    assert read_png("w.png").shape[1] > 5 * read_png("w.png").shape[0]  # one line of nine


def test_score_prints_a_table(done: Callable[..., str], client: Client) -> None:
    np.save("data.npy", pixels(3))
    lines = done("score", "data.npy", "--draws", "8", "--seed", "2").splitlines()
    elbo = client.score(pixels(3), draws=8, seed=2).elbo
    assert [line.split()[0] for line in lines[:5]] == ["row", "0", "1", "2", "mean"]
    assert [float(line.split()[1]) for line in lines[1:4]] == pytest.approx(elbo, abs=1e-3)
    assert lines[5].startswith("3 rows, 8 draws each, in nats, by toy")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("sample --count 5000", 2, "count: 5000 rows requested"),
        ("sample --count many", 2, "invalid int value"),
        (
            "sample --out grid.jpg",
            2,
            "Use a .png or .npz or .npy or .txt or .csv or .parquet path, or a folder.",
        ),
        ("sample --out no/such/grid.png", 2, "folder no/such does not exist"),
        ("sample --model other", 2, "served models: toy"),
        ("stream --count 5 --out full", 2, "full is not empty"),
        ("stream --count 0 --out rows.npy", 2, "count: 0 rows"),
        ("encode missing.png --out z.npz", 2, "missing.png: no such file"),
        ("encode full/note --out z.npz", 2, "full/note: unsupported file"),
        ("encode bad.npy --out z.npz", 2, "bad.npy cannot be read as an array"),
        ("encode bad.png --out z.npz", 2, "bad.png: not a readable image"),
        ("encode good.npz:y --out z.npz", 2, "no array named y. Use one of: good.npz:x"),
        (
            "encode good.npz good.npy --out z.npz",
            2,
            "good.npy has rows of float32 [4, 4]",
        ),
        ("score good.npz --rows 7", 2, "invalid range '7', use for example 0:8"),
        ("score good.npz --rows 7:", 2, "selects no rows out of 2"),
        ("interpolate --start seed:x --end seed:1", 2, "--start: invalid point 'seed:x'"),
        (
            "interpolate --start good.npz --end seed:1",
            2,
            "expected exactly one row, good.npz has 2",
        ),
        ("model --server localhost:1", 1, "localhost:1 is unavailable"),
        (
            "model --server a.example:1 --token-file full/note",
            2,
            "token in plain text to a.example",
        ),
        ("", 2, "CALL"),
    ],
)
def test_error_is_a_message_and_a_status(run: Run, words: str, status: int, message: str) -> None:
    Path("full").mkdir()
    for name in ("full/note", "bad.npy", "bad.png"):
        Path(name).write_text("neither an array nor an image")
    np.savez("good.npz", x=pixels(2))
    np.save("good.npy", pixels(2).astype(np.float32))
    before = sorted(Path().rglob("*"))
    got, _, err = run(*words.split())
    assert got == status
    assert message in err
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before


def test_missing_server_explains_how_to_start_one(run: Run) -> None:
    assert "latentd serve --bundles" in run("sample", "--server", "localhost:1")[2]


def test_every_call_has_an_example(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    calls = "model models encode decode sample stream reconstruct interpolate score health"
    for call in calls.split():
        assert f"    {call}" in out
        assert f"example: latentd client {call}" in run(call, "--help")[1]


@pytest.mark.parametrize("out", ["rows.npy", "rows.npz", "pictures"])
def test_ctrl_c_leaves_no_files(server: Any, tmp_path: Path, out: str) -> None:
    command = [sys.executable, "-m", "latentd", "client", "stream", "--server", server.target]
    command += ["--count", str(10**12), "--out", str(tmp_path / out)]

    def has_written() -> bool:
        return sum(path.stat().st_size for path in tmp_path.rglob("*")) >= 1 << 16

    with running(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(has_written, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "latentd: Interrupted; nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "--version", "-1"), "version: -1 is out of range"),
        (("decode", "none.npy"), "none.npy: has no latents"),
        (("sample", "--timeout", "-1"), "timeout=-1.0: "),
        (("sample", "--timeout", "nan"), "timeout=nan: "),
        (("sample", "--server", ""), "Invalid address ''"),
        (("sample", "--server", "http://localhost:1"), "use host:port, without http://"),
        (("sample", "--token-file", "empty.txt"), "--token-file empty.txt is empty"),
    ],
)
def test_invalid_flag_is_reported(run: Run, words: tuple[str], said: str) -> None:
    np.save("none.npy", np.empty((0, 3), np.float32))
    Path("empty.txt").touch()
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"latentd: .*{re.escape(said)}.*\.\n", err), err


@pytest.mark.parametrize("out", ["rows.npy", "rows.npz", "pictures"])
def test_full_disk_names_the_output(run: Run, out: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        status, _, err = run("stream", "--count", "5", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (status, err) == (2, f"latentd: {out}: File too large.\n")
    assert not Path(out).exists()


def test_resize_accepts_a_photo(done: Callable[..., str], run: Run) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(photo).save("photo.jpg", quality=95)
    status, _, err = run("encode", "photo.jpg", "--out", "z.npz")
    assert status == 2
    assert "photo.jpg: expected 4 x 4 pixels (width x height), got 7 x 9" in err
    assert "Pass --fit resize or --fit crop to resize it" in err
    done("reconstruct", "photo.jpg", "--fit", "resize", "--out", "back.npz")
    with Image.open("photo.jpg") as image:
        wanted = image.convert("L").resize((4, 4), Image.Resampling.LANCZOS)
    with np.load("back.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"][0], np.asarray(wanted))
    done(
        "interpolate",
        "--start",
        "photo.jpg",
        "--end",
        "seed:1",
        "--fit",
        "resize",
        "--out",
        "path.npy",
    )


def test_reads_every_kind_of_file_that_jobs_read(
    done: Callable[..., str], run: Run, client: Client
) -> None:
    x = pixels(6)
    Path("shards/part=1").mkdir(parents=True)
    Path("pictures").mkdir()
    table = pa.table({"x": pa.array([row.tobytes() for row in x], pa.binary())})
    pq.write_table(table, "shards/part=1/a.parquet")
    Path("train-images.idx3-ubyte").write_bytes(
        bytes((0, 0, 8, 3)) + struct.pack(">3I", *x.shape) + x.tobytes()
    )
    np.save("wide.npy", x.astype(np.int64))
    for number, row in enumerate(x):
        Image.fromarray(row).save(f"pictures/{number}.bmp")
    for name in ("shards", "train-images.idx3-ubyte", "wide.npy", "pictures", "pictures/*.bmp"):
        status, _, err = run("encode", name, "--rows", "1:5", "--out", "z.npz")
        assert status == 0, err
        with np.load("z.npz") as arrays:
            np.testing.assert_array_equal(arrays["mean"], client.encode(x[1:5]).mean, name)
    Path("pictures/.DS_Store").write_bytes(b"hidden")
    _, _, err = run("encode", "pictures", "--out", "z.npz")
    assert err == "7 files found, 6 taken, 1 left out: 1 hidden (the name starts with a dot).\n"


def test_tilde_means_the_home_folder(
    done: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    np.save("z.npy", np.zeros((1, 16), np.float32))
    done("interpolate", "--start", "z:~/z.npy", "--end", "seed:1", "--out", "path.npy")
    np.savez("x.npz", rows=pixels(2), y=np.zeros(2))
    done("encode", "~/x.npz:rows", "--out", "back.npz")


def test_invalid_row_names_its_file_or_row(run: Run) -> None:
    Path("pictures").mkdir()
    for name in ("a.png", "b.png"):
        Path("pictures", name).write_bytes(b"not an image")
    _, _, err = run("encode", "pictures", "--out", "z.npz")
    assert "pictures/a.png: not a readable image file (and 1 other invalid rows)" in err
    x = pixels(3).astype(np.int64)
    x[1, 0, 0] = 300
    np.save("x.npy", x)
    assert run("encode", "x.npy", "--out", "z.npz")[0] == 2
    assert run("encode", "x.npy", "--rows", "2:", "--out", "z.npz")[0] == 0
