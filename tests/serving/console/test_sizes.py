"""`latentd client` with models whose axes are free: --size, files of any size, of several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd import images
from latentd.client import Client
from tests.support.echo_bundle import publish_echo
from tests.support.spatial_bundle import blocks, encoded, publish_spatial

Run = Callable[..., tuple[int, str, str]]
Done = Callable[..., str]

MIXED = [(32, 64), (96, 160), (32, 64), (16, 16), (96, 160)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Any:
    root = tmp_path_factory.mktemp("bundles")
    publish_spatial(root)
    publish_spatial(root, "scored", likelihood=True)
    publish_spatial(root, "plain", prior=None)
    publish_echo(root)
    return module_servers(root, default_model="spatial", max_batch_latency_ms=5)


def write_pictures(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Pictures of these heights and widths, in the folder "mixed"."""
    Path("mixed").mkdir()
    rows = [blocks(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]
    for number, row in enumerate(rows):
        Image.fromarray(row).save(f"mixed/{number}.png")
    return rows


def test_model_is_described_with_its_axes_and_what_it_cannot_do(done: Done) -> None:
    lines = done("model").splitlines()
    assert "  x              uint8 h x w x 3, 0 to 255" in lines
    assert "  z              float32 4 x h/8 x w/8, gaussian posterior" in lines
    assert "  h              a multiple of 8 from 16 to 256, by default 32" in lines
    assert "  no score       this model defines no likelihood" in lines
    assert "  p(x | z)       none" in lines
    assert any(line.startswith("  limits         4096 rows of the default size") for line in lines)
    assert any("encoder" in line and "of 16 x 16 x 3" in line for line in lines)
    document = json.loads(done("model", "--json"))
    assert document["x"]["shape"] == ["h", "w", 3]
    assert document["z"]["shape"] == [4, "h/8", "w/8"]
    assert document["axes"]["h"]["max"] == 256


@pytest.mark.parametrize("size", ["96x160", "h=96,w=160", "w=160,h=96"])
def test_size_of_samples(done: Done, client: Client, size: str) -> None:
    rows = client.sample(3, seed=7, sizes={"h": 96, "w": 160}).x
    words = ("--count", "3", "--seed", "7", "--size", size, "--out")
    assert done("sample", *words, "rows.npy").startswith("3 rows of uint8 96 x 160 x 3 in rows.npy")
    np.testing.assert_array_equal(np.load("rows.npy"), rows)
    done("sample", *words, "grid.png")
    assert Path("grid.png").read_bytes() == images.make_grid(rows)
    said = done("stream", *words, "streamed.npy", "--chunk-rows", "2")
    assert said.startswith("3 rows of uint8 96 x 160 x 3 in streamed.npy")
    np.testing.assert_array_equal(np.load("streamed.npy"), rows)
    done("stream", *words, "pictures")
    with Image.open("pictures/2.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), rows[2])


def test_axis_that_is_not_named_has_its_default(done: Done) -> None:
    done("sample", "--count", "2", "--size", "w=64", "--out", "rows.npy")
    assert np.load("rows.npy").shape == (2, 32, 64, 3)


def test_size_of_interpolations(done: Done, client: Client) -> None:
    words = ("interpolate", "--end", "seed:7", "--steps", "3", "--out", "way.npy")
    done(*words, "--start", "seed:8", "--size", "48x64")
    way = np.load("way.npy")
    assert way.shape == (3, 48, 64, 3)
    np.testing.assert_array_equal(way[2], client.sample(1, seed=7, sizes={"h": 48, "w": 64}).x[0])
    (row,) = write_pictures([(96, 160)])
    done(*words, "--start", "mixed/0.png")  # its size is that of the sample too
    np.testing.assert_array_equal(np.load("way.npy")[0], row)
    done(*words, "--start", "mixed/0.png", "--size", "32x64", "--fit", "resize")
    assert np.load("way.npy").shape == (3, 32, 64, 3)
    np.save("z.npy", encoded(row[None])[0])  # one latent, without an axis of rows
    done(*words, "--start", "z:z.npy")
    np.testing.assert_array_equal(np.load("way.npy")[0], row)


def test_files_of_one_size_are_encoded_and_decoded(done: Done, run: Run) -> None:
    rows = np.stack(write_pictures([(96, 160)] * 3))
    said = done("encode", "mixed/0.png", "mixed/1.png", "mixed/2.png", "--out", "z.npz")
    assert said.startswith("mean, log_var of 3 rows, float32 4 x 12 x 20 in z.npz")
    done("decode", "z.npz", "--out", "back.npy")
    np.testing.assert_array_equal(np.load("back.npy"), rows)
    np.save("one.npy", encoded(rows[:1])[0])
    done("decode", "one.npy", "--out", "back.npy")
    np.testing.assert_array_equal(np.load("back.npy"), rows[:1])
    np.save("rows.npy", rows)
    done("encode", "rows.npy", "--draw", "--seed", "1", "--out", "drawn.npz")
    with np.load("drawn.npz") as arrays:
        assert arrays["z"].shape == (3, 4, 12, 20)
    done("reconstruct", "rows.npy", "--out", "both.npz")
    with np.load("both.npz") as arrays:
        np.testing.assert_array_equal(arrays["reconstruction"], rows)


def test_scores_of_files_of_several_sizes_are_in_the_order_of_the_files(
    run: Run, client: Client
) -> None:
    rows = write_pictures(MIXED)
    status, said, _ = run("score", "mixed", "--model", "scored", "--draws", "4", "--seed", "2")
    assert status == 0
    shown = [float(line.split()[1]) for line in said.splitlines()[1:6]]
    # The noise of a row is that of its place in the order of the calls.
    offsets = [0, 2, 1, 4, 3]
    expected = [
        client.score(row[None], draws=4, seed=2, offset=offset, model="scored").elbo[0]
        for row, offset in zip(rows, offsets, strict=True)
    ]
    assert shown == pytest.approx(expected, abs=1e-2)
    status, said, _ = run("score", "mixed", "--rows", "1:3", "--model", "scored", "--draws", "4")
    assert "2 rows, 4 draws each" in said


def test_picture_of_reconstructions_of_several_sizes(run: Run) -> None:
    rows = write_pictures(MIXED[:3])
    words = ("reconstruct", "mixed", "--model", "scored", "--scores", "--out", "both.png")
    status, said, _ = run(*words)
    assert status == 0
    assert "3 rows of uint8 in 2 sizes in both.png" in said
    padded = np.full((3, 96, 160, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        padded[place, : row.shape[0], : row.shape[1]] = row
    expected = images.make_grid(np.concatenate([padded, padded]), columns=3)
    assert Path("both.png").read_bytes() == expected


@pytest.mark.parametrize("words", ["encode mixed --out z.npz", "reconstruct mixed --out both.npz"])
def test_several_sizes_do_not_fit_into_one_array(run: Run, words: str) -> None:
    write_pictures(MIXED)
    status, _, err = run(*words.split())
    assert status == 2
    assert "FILE: the rows have several sizes (2 of 32 x 64 x 3, 2 of 96 x 160 x 3, 1 of " in err
    assert "Name the files of one size, or pass --fit resize." in err
    status, said, _ = run(*words.split(), "--fit", "resize", "--size", "48x48")
    assert status == 0
    assert ("48 x 48 x 3" if "reconstruct" in words else "4 x 6 x 6") in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "sample --size 100x32",
            "--size: h is 100; expected a multiple of 8 from 16 to 256. The nearest valid length "
            "is 104.",
        ),
        ("sample --size 96", "--size: invalid size '96'. Use 96x160 or h=96,w=160."),
        ("sample --size d=8", "--size: the model has no free axis 'd'; it has h, w."),
        ("stream --size 8by8 --out rows.npy", "--size: invalid size '8by8'"),
        ("sample --model echo --size 4", "--size: all lengths of echo are fixed."),
        ("encode mixed/0.png --size 32x32 --out z.npz", "--size: files have sizes of their own"),
        ("encode odd.png --out z.npz", "h is 20; expected a multiple of 8 from 16 to 256"),
        ("encode odd.npy --out z.npz", "h is 20; expected a multiple of 8 from 16 to 256"),
        ("decode small.npy --out x.npy", "z.shape: a latent of shape [4, 1, 4] means that h is 8"),
        ("sample --model plain", "model: plain has no prior"),
        ("score mixed/0.png", "model: spatial defines no likelihood"),
    ],
)
def test_wrong_size_is_a_message(run: Run, words: str, message: str) -> None:
    write_pictures([(32, 32)])
    odd = np.zeros((20, 32, 3), np.uint8)
    Image.fromarray(odd).save("odd.png")
    np.save("odd.npy", odd[None])
    np.save("small.npy", np.zeros((2, 4, 1, 4), np.float32))
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
