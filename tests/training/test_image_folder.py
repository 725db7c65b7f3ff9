"""Folders of images: which files are used or skipped, what is printed, how each mode is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentd.training import machine
from latentd.training.config import Config
from latentd.training.data import load
from latentd.training.errors import TrainingError
from latentd.training.readers.image_files import find
from latentd.training.readers.image_folder import ImageOptions, read_pictures
from tests.support.runs import TINY, lines

Cli = Callable[..., tuple[int, str, str]]


def save(path: Path, color: tuple[int, ...] = (10, 20, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (9, 8), color if len(color) > 1 else color[0]).save(path)
    return path


def test_used_and_skipped_files_are_counted(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("a.png", "b.JPG", "deep/er/c.gif", "d.webp", "e.tiff", "f.bmp"):
        save(folder / name)
    save(elsewhere / "linked.jpeg")
    (folder / "album").symlink_to(elsewhere)  # a linked folder
    (elsewhere / "back").symlink_to(folder)  # makes a cycle
    (folder / "g.tif").symlink_to(save(tmp_path / "other.tif"))  # a linked file
    for name in ("._a.png", ".DS_Store", "h.heic", "i.heic", "notes.txt", "README"):
        (folder / name).write_bytes(b"?")
    (folder / ".thumbnails").mkdir()
    os.mkfifo(folder / "j.png")
    found = find(folder)
    names = ["a.png", "album/linked.jpeg", "b.JPG", "d.webp", "deep/er/c.gif", "e.tiff", "f.bmp"]
    assert [str(path.relative_to(folder)) for path in found.paths] == [*names, "g.tif"]
    assert found.left_out == {
        "hidden": 3,
        ".heic": 2,
        ".txt": 1,
        "without a suffix": 1,
        "not plain files": 1,
        "links to folders read already": 1,
    }
    assert found.summary() == (
        "17 files found, 8 taken, 9 left out (3 hidden, 2 .heic, 1 without a suffix, 1 not plain "
        "files, 1 .txt, 1 links to folders read already); pictures of kind .heic are not read"
    )
    pictures = read_pictures(folder, ImageOptions())
    assert pictures.pixels.shape == (8, 8, 9, 3)
    assert found.summary() in pictures.notes[0]


def test_counts_are_always_printed(cli: Cli, picture_folder: Path, tmp_path: Path) -> None:
    status, _, err = cli(
        "train", "--data", f"images:{picture_folder}", "--out", tmp_path / "r", *TINY
    )
    assert status == 0, err
    assert "40 files found, 40 taken, none left out; read as 11x18 (height x width) RGB" in err


def test_all_bad_files_are_reported_together_and_can_be_skipped(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(40):
        save(folder / f"{i:02}.png", (i, 200, 0))
    for i in range(5):
        (folder / f"text{i}.jpg").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    for name in ("cut1.png", "cut2.png"):
        Image.fromarray(noise).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:150])
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    Image.fromarray(np.ones((8, 9), np.float32)).save(folder / "floats.tif")
    arguments = ("train", "--data", f"images:{folder}", "--out", tmp_path / "run", *TINY)
    status, _, err = cli(*arguments)
    assert status == 2
    assert "9 of 49 files cannot be used" in err
    for words in (
        r"5 no picture of a kind that is read \(\S*text0.jpg, \S*text1.jpg, \S*, and 2 more\)",
        r"2 damaged \(\S*cut1\.png: .*, \S*cut2\.png: .*\)",
        r"1 No such file or directory \(\S*gone\.png\)",
        r"1 of mode F, which has no rule \(\S*floats\.tif\)",
        r"pass --bad-images skip",
    ):
        assert re.search(words, err), (words, err)
    assert not (tmp_path / "run").exists()
    status, _, err = cli(*arguments, "--bad-images", "skip")
    assert status == 0, err
    assert "49 files found, 40 taken, 9 left out (9 that cannot be used)" in err
    assert "cannot be used and left out: 1 No such file" in err
    split = lines(tmp_path / "run")[0]["split"]
    assert sum(split[part] for part in ("train", "validation", "test")) == 40


def test_folder_of_bad_files_only_is_rejected_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(TrainingError, match="1 of 1 files cannot be used"):
        read_pictures(tmp_path, ImageOptions(skip_bad=True))


@pytest.mark.parametrize("damaged", [[0], [9], [8, 9], [0, 9], [1, 4, 8], list(range(9))])
def test_rows_of_damaged_images_are_filled(tmp_path: Path, damaged: list[int]) -> None:
    """Whatever the order, rows, labels and files belong together."""
    for i in range(10):
        path = save(tmp_path / str(i % 2) / f"{i}.png", (i, 2 * i, 3 * i))
        if i in damaged:
            path.write_bytes(path.read_bytes()[:44])
    order = np.random.default_rng(0).permutation
    pictures = read_pictures(tmp_path, ImageOptions(skip_bad=True), order=order)
    shown = pictures.pixels[:, 0, 0, 0].tolist()
    assert (pictures.pixels == pictures.pixels[:, :1, :1]).all()
    assert sorted(shown) == [i for i in range(10) if i not in damaged]
    if pictures.labels is not None:
        assert [i % 2 for i in shown] == pictures.labels.tolist()
    assert len(pictures.left_out) == len(damaged)


GREY = np.arange(72, dtype=np.uint8).reshape(8, 9)


def test_each_image_mode_is_converted(tmp_path: Path) -> None:
    half = Image.new(
        "LA", (9, 8), (100, 0)
    )  # fully transparent: only the white background is visible
    cases = {
        "a16.png": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        "b1.png": (Image.new("1", (9, 8), 1), np.full((8, 9), 255)),
        "cLA.png": (half, np.full((8, 9), 255)),
        "dL.png": (Image.fromarray(GREY), GREY),
    }
    for name, (image, _) in cases.items():
        image.save(tmp_path / name)
    np.testing.assert_array_equal(
        read_pictures(tmp_path, ImageOptions()).pixels,
        np.stack([wanted for _, wanted in cases.values()]),
    )
    palette = Image.new("P", (9, 8), 1)
    palette.putpalette([0, 0, 0, 250, 0, 50])
    colored = {
        "eP.gif": (palette, (250, 0, 50)),
        "fRGBA.png": (Image.new("RGBA", (9, 8), (0, 0, 255, 51)), (204, 204, 255)),
        "gCMYK.tif": (Image.new("CMYK", (9, 8), (255, 0, 0, 0)), (0, 255, 255)),
    }
    for name, (image, _) in colored.items():
        image.save(tmp_path / name)
    pictures = read_pictures(tmp_path, ImageOptions())
    assert pictures.pixels.shape == (7, 8, 9, 3)  # one color image makes all of them color
    for pixels, (_, color) in zip(pictures.pixels[4:], colored.values(), strict=True):
        assert (pixels == color).all(), color
    np.testing.assert_array_equal(pictures.pixels[3], np.repeat(GREY[..., None], 3, axis=2))
    (note,) = pictures.notes
    assert "read as 8x9 (height x width) RGB, from" in note
    for words in ("1 CMYK", "1 RGBA", "1 P", "1 LA", "1 I;16", "1 L"):
        assert words in note


def test_only_orientation_is_read_from_exif(tmp_path: Path) -> None:
    """Cameras write this kind of resolution. Pillow cannot write it."""
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=srational_exif())
    Image.fromarray(GREY).save(tmp_path / "b.jpg", exif=srational_exif())
    with Image.open(tmp_path / "b.jpg") as image, pytest.raises(Exception, match="argument out"):
        ImageOps.exif_transpose(image)
    pixels = read_pictures(tmp_path, ImageOptions()).pixels
    assert pixels.shape == (2, 9, 8)
    np.testing.assert_array_equal(pixels[0], np.rot90(GREY, -1))


def srational_exif() -> bytes:
    """Orientation 6, and an XResolution of type SRATIONAL (-1, 0)."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    resolution = b"\x1a\x01\x0a\x00\x01\x00\x00\x00\x26\x00\x00\x00"
    directory = b"\x02\x00" + entry + resolution + b"\x00\x00\x00\x00"
    return (
        b"Exif\x00\x00II\x2a\x00\x08\x00\x00\x00" + directory + b"\xff\xff\xff\xff\x00\x00\x00\x00"
    )


def test_names_that_are_not_utf8(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(30):
        save(folder / os.fsdecode(b"\xe9t\xe9" if i % 2 else b"hiver") / f"{i}.png", (i, 99, 0))
    status, _, err = cli(*("train", "--data", f"images:{folder}", "--out", tmp_path / "run", *TINY))
    assert status == 0, err
    assert r"labels: hiver (15), \xe9t\xe9 (15)." in err
    save(folder / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    status, _, err = cli("train", "--data", f"images:{folder}", "--out", tmp_path / "other")
    assert status == 2
    assert r"\xff.png" in err


def test_class_folders_become_labels(picture_folder: Path) -> None:
    dataset = load(Config(data=f"images:{picture_folder}"))
    assert dataset.classes == ("cats", "dogs")
    assert dataset.summary()["classes"] == ["cats", "dogs"]
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.y is not None
        for row, label in zip(part.x, part.y, strict=True):
            name = dataset.classes[int(label)]
            files = [np.asarray(Image.open(p)) for p in (picture_folder / name).iterdir()]
            assert any(np.array_equal(row.numpy(), file) for file in files)
    save(picture_folder / "beside.png").write_bytes(
        next((picture_folder / "cats").iterdir()).read_bytes()
    )
    assert (
        load(Config(data=f"images:{picture_folder}")).train.y is None
    )  # some files are in no class folder


def test_images_larger_than_memory_are_rejected_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png")
    monkeypatch.setattr(machine, "available_memory", lambda: 6 * 8 * 9 * 3 - 2)
    with pytest.raises(TrainingError, match="at most half of the available memory"):
        read_pictures(tmp_path, ImageOptions())


def test_image_of_too_many_pixels_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # the image has 72: Pillow would only warn
    with pytest.raises(TrainingError, match="1 of more than 50 pixels"):
        read_pictures(tmp_path, ImageOptions())
