"""The files that a path names: read and skipped files are counted."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import struct
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from latentd.bundle import DataSpec
from latentd.errors import BadData, ConfigError
from latentd.readers import files, kinds, sources
from latentd.readers.arrays import ArrayFile
from latentd.readers.sources import FileCounts, Source
from tests.support.sized import takes, takes_pictures


def find(pattern: object) -> tuple[list[Source], FileCounts]:
    counts = FileCounts()
    return sources.find(str(pattern), counts), counts


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"some bytes")
    return folder


def test_both_halves_read_the_same_images(tmp_path: Path) -> None:
    from latentd.training.readers import image_files

    assert set(kinds.PICTURES) == set(image_files.SUFFIXES)
    root = touch(tmp_path, "a.PNG", "sub/b.gif", "c.pgm", "d.heic", "._a.png", ".hidden/e.png")
    (root / "sub" / "up").symlink_to(root)
    [source], counts = find(root)
    found = image_files.find(root)
    assert list(source.names) == [str(path.relative_to(root)) for path in found.paths]
    assert sum(counts.left_out.values()) == sum(found.left_out.values())


def test_both_halves_convert_images_alike(tmp_path: Path) -> None:
    from latentd.training.readers.image_folder import ImageOptions, read_pictures

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "cmyk.tif": Image.fromarray(pixels, "CMYK"),
        "grey.png": Image.fromarray(pixels[..., 0]),
        "palette.gif": Image.fromarray(pixels[..., :3]).quantize(16),
        "rgb.bmp": Image.fromarray(pixels[..., :3]),
        "rgba.webp": Image.fromarray(pixels),
        "turned.jpg": Image.fromarray(pixels[..., :3]),
        "wide.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 100),
    }
    for name, image in made.items():
        image.save(tmp_path / name, exif=exif if name == "turned.jpg" else b"")
    trained = read_pictures(tmp_path, ImageOptions("4x5")).pixels
    x = DataSpec("image", (4, 5, 3), "uint8", (0, 255))
    [source], _ = find(tmp_path)
    with closing(sources.open_source(source, takes(x), fit="resize")) as reader:
        np.testing.assert_array_equal(reader.read(0, len(made)).x, trained)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.PNG", "picture"),
        ("a.jpeg", "picture"),
        ("a.gif", "picture"),
        ("a.heic", None),
        ("a.npy", "npy"),
        ("a.npy.gz", "npy"),
        ("a.NPZ", "npz"),
        ("train-images-idx3-ubyte", "idx"),
        ("train-images.idx3-ubyte.gz", "idx"),
        ("part-0.snappy.parquet", "parquet"),
        ("a.csv", None),
        ("png", None),
    ],
)
def test_kind_of_a_file_by_its_name(name: str, kind: str | None) -> None:
    assert kinds.kind_of(name) == kind


def test_folder_follows_links_and_counts_every_file(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "far.jpg")
    root = touch(
        tmp_path / "root",
        *("a.png", "sub/b.JPG", "sub/c.gif", "d.heic", "notes.txt", "README", "labels.npy"),
        *("._a.png", ".DS_Store", ".cache/e.png"),
    )
    (root / "linked").symlink_to(elsewhere)
    (root / "sub" / "up").symlink_to(root)  # a cycle
    (root / "again.png").symlink_to(elsewhere / "far.jpg")
    (root / "gone.png").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    with closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(str(root / "socket.png"))
    [source], counts = find(root)
    assert source.kind == "picture"
    assert source.names == ["a.png", "again.png", "linked/far.jpg", "sub/b.JPG", "sub/c.gif"]
    assert counts.taken == 5
    assert counts.left_out == {
        sources.HIDDEN: 3,
        sources.NOT_PLAIN: 2,
        sources.BROKEN: 1,
        sources.SEEN: 1,
        ".heic (image format not supported)": 1,
        ".txt (not supported)": 1,
        "without a suffix (not supported)": 1,
        "arrays next to images": 1,
    }
    assert str(counts).startswith("16 files found, 5 taken, 11 left out: 1 .heic (")
    assert str(FileCounts(2)) == "2 files found, 2 taken, none left out"


def test_recursive_glob_reads_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png", "sub/deep/d.npy", ".e.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    [source], counts = find(tmp_path / "**" / "*.png")
    assert [Path(name).name for name in source.names] == ["a.png", "b.png", "c.png"]
    assert counts.left_out == {sources.HIDDEN: 1, sources.SEEN: 1}
    monkeypatch.chdir(tmp_path)
    [source], _ = find("**/deep/*.png")
    assert source.names == ["sub/deep/c.png"]
    [source], _ = find("s*/**/c.png")
    assert source.names == ["sub/deep/c.png"]


def test_unreadable_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def closed(path: str) -> Any:  # as for a user who is not root
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    _, counts = find(root)
    assert counts.left_out == {f"{sources.CLOSED} (Permission denied)": 1}


def test_folder_of_spark_and_hive_shards_is_read(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("day=1/part-0.parquet", "day=2/part-1.parquet", "_SUCCESS"),
        *("_temporary/0/part-2.parquet", "._day=1.parquet"),
    )
    found, counts = find(tmp_path)
    assert [Path(source.path).name for source in found] == ["part-0.parquet", "part-1.parquet"]
    assert counts.left_out == {
        "without a suffix (not supported)": 1,
        sources.SPARK: 1,
        sources.HIDDEN: 1,
    }


def test_remote_store_follows_the_same_rules() -> None:
    memory = MemoryFileSystem()
    for name in ("a.png", "sub/b.jpg", ".hidden/c.png", "._a.png", "d.heic"):
        memory.pipe(f"/rule/{name}", b"some bytes")
    [source], counts = find("memory://rule")
    assert source.names == ["a.png", "sub/b.jpg"]
    assert counts.left_out == {
        sources.HIDDEN: 2,
        ".heic (image format not supported)": 1,
    }
    [source], counts = find("memory://rule/*.png")
    assert len(source.names) == 1
    assert counts.left_out == {sources.HIDDEN: 1}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.tar.gz", "Unpack it and name the folder. Supported: images"),
        ("a.zip", "Unpack it and name the folder. Supported: images"),
        ("a.feather", "Write its rows to a .npy or .parquet file"),
        ("a.heic", "Convert it to .png or .jpg"),
        ("notes", "unsupported file"),
        ("pipe", "is a pipe, socket or device"),
        ("a.npy:key", "no such file"),
    ],
)
def test_unsupported_file_is_rejected_with_advice(tmp_path: Path, name: str, said: str) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    elif ":" not in name:
        touch(tmp_path, name)
    with pytest.raises(ConfigError, match=said):
        find(tmp_path / name)


def test_opening_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(BadData, match="not a regular file"):
        files.open_file(str(tmp_path / "x.npy"))


def idx(*sizes: int, data: bytes = b"") -> bytes:
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes) + data


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "idx3-ubyte", "idx3-ubyte.gz"])
def test_header_that_declares_too_much_is_rejected(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.npy":
        path.write_bytes(npy_header((1 << 40, 4, 4)))
    elif name == "x.npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", npy_header((1 << 40, 4, 4)) + bytes(1 << 20))
    elif name == "idx3-ubyte":
        path.write_bytes(idx(1 << 31, 1 << 15, 1 << 15))
    else:
        path.write_bytes(gzip.compress(idx(1 << 31, 1 << 15, 1 << 15)))
    with pytest.raises(BadData, match="which the file cannot hold"):
        ArrayFile(str(path))


def test_array_in_fortran_order_is_read(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(24).reshape(4, 3, 2))
    np.save(tmp_path / "x.npy", x)
    with closing(ArrayFile(str(tmp_path / "x.npy"))) as array:
        np.testing.assert_array_equal(array.read(1, 3), x[1:3])


def test_labels_are_reported(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(idx(3, data=b"\1\2\3"))
    with pytest.raises(BadData, match="perhaps labels"):
        ArrayFile(str(tmp_path / "labels"))


def test_links_that_cannot_be_followed_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "long.png").symlink_to("x" * 255 + "y")
    [source], counts = find(tmp_path)
    assert source.names == ["a.png"]
    assert counts.left_out == {sources.BROKEN: 2}


def test_image_kinds_are_named_however_many_reasons_there_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.heic", "c.jfif")
    for number in range(8):
        touch(tmp_path, f"x.kind{number}", f"y.kind{number}")
    _, counts = find(tmp_path)
    assert "1 .heic (image format not supported), 1 .jfif (image format not" in str(counts)
    assert str(counts).endswith("8 others")


def test_named_table_column_of_another_type_is_reported(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"path": ["a.png"], "x": [b"1"]}), tmp_path / "t.parquet")
    x = DataSpec("vector", (1,), "uint8", (0, 255))
    [source], _ = find(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"column path has type string; expected lists or bytes"):
        sources.open_source(source, takes(x), column="path")


def picture(path: Path, width: int, height: int, **options: Any) -> np.ndarray:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def test_model_with_free_axes_reads_pictures_of_each_size(tmp_path: Path) -> None:
    small, wide = picture(tmp_path / "a.png", 8, 8), picture(tmp_path / "b.png", 32, 4)
    picture(tmp_path / "c.png", 8, 37)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "d.jpg", 32, 4, exif=turned)
    [source], _ = find(tmp_path)
    with closing(sources.open_source(source, takes_pictures())) as reader:
        np.testing.assert_array_equal(reader.read(0, 1).x, small[None])
        np.testing.assert_array_equal(reader.read(1, 2).x, wide[None])
        [bad] = reader.read(2, 3).bad
        assert reader.read(3, 4).x.shape == (1, 32, 4, 3)
        both = reader.read(0, 2)
    assert bad.reason == (
        "h is 37; expected a multiple of 4 from 4 to 32. The nearest valid length is 32. "
        "Pass --fit resize or --fit crop to bring every picture to 8 x 8 pixels (width x height)"
    )
    assert both.rows.tolist() == [0]
    assert "has shape [4, 32, 3], but the first row has [8, 8, 3]" in both.bad[0].reason


def test_free_axes_with_resize_give_the_default_size(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 8, 37)
    picture(tmp_path / "b.png", 32, 4)
    [source], _ = find(tmp_path)
    with closing(sources.open_source(source, takes_pictures(), fit="resize")) as reader:
        assert reader.read(0, 2).x.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((12, 16, 3), ""),
        ((12, 18, 3), "w is 18; expected a multiple of 4 from 4 to 32"),
        ((12, 16), r"the model expects uint8 \[h, w, 3\]"),
    ],
)
def test_array_has_one_size(tmp_path: Path, shape: tuple[int, ...], said: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, *shape), np.uint8))
    [source], _ = find(tmp_path / "x.npy")
    if said:
        with pytest.raises(ConfigError, match=said):
            sources.open_source(source, takes_pictures())
        return
    with closing(sources.open_source(source, takes_pictures())) as reader:
        assert reader.read(0, 2).x.shape == (2, *shape)


def test_table_has_image_files_of_each_size(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [picture(tmp_path / "a.png", *size) for size in [(8, 8), (8, 8), (4, 12), (5, 5)]]
    files_ = []
    for row in rows:
        Image.fromarray(row).save(tmp_path / "a.png")
        files_.append({"bytes": (tmp_path / "a.png").read_bytes(), "path": None})
    pq.write_table(pa.table({"image": [*files_, None]}), tmp_path / "t.parquet")
    [source], _ = find(tmp_path / "t.parquet")
    with closing(sources.open_source(source, takes_pictures())) as reader:
        assert [s and s.key for s in reader.row_shapes()] == [(8, 8), (8, 8), (12, 4), None, (8, 8)]
        np.testing.assert_array_equal(reader.read(0, 2).x, np.stack(rows[:2]))
        np.testing.assert_array_equal(reader.read(2, 3).x, rows[2][None])
        assert [bad.row for bad in reader.read(3, 5).bad] == [3, 4]
