"""Data that cannot be used: the error message is clear, and nothing is written."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd.training.errors import TrainingError
from latentd.training.readers.arrays import read_numpy

BYTES = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)
FLOATS = np.linspace(0, 1, 40 * 5, dtype=np.float32).reshape(40, 5)

Make = Callable[[Path], str]
BAD: dict[str, tuple[Make, str]] = {}


def bad(words: str) -> Callable[[Make], Make]:
    """Register a function that makes bad data and returns --data, with the expected message."""

    def register(make: Make) -> Make:
        BAD[make.__name__] = (make, words)
        return make

    return register


def saved(folder: Path, array: np.ndarray, allow_pickle: bool = False) -> str:
    np.save(folder / "rows.npy", array, allow_pickle=allow_pickle)
    return f"npz:{folder / 'rows.npy'}"


@bad(r"'csv:x' is not a source: use digits, mnist-5k, idx:DIR")
def unknown_scheme(folder: Path) -> str:
    return "csv:x"


@bad(r"should read npz:PATH")
def no_path(folder: Path) -> str:
    return "npz:"


@bad(r"should read digits, with nothing after it")
def digits_with_a_path(folder: Path) -> str:
    return "digits:here"


@bad(r"should read mnist-5k, with nothing after it")
def mnist_5k_with_a_path(folder: Path) -> str:
    return "mnist-5k:here"


@bad(r"none\.npz does not exist")
def missing_file(folder: Path) -> str:
    return f"npz:{folder / 'none.npz'}"


@bad(r"none is not a folder")
def missing_folder(folder: Path) -> str:
    return f"images:{folder / 'none'}"


@bad(r"is not a folder; idx:DIR")
def missing_idx_folder(folder: Path) -> str:
    return f"idx:{folder / 'none'}"


@bad(r"holds no pictures")
def empty_folder(folder: Path) -> str:
    (folder / "notes.txt").write_text("no pictures here")
    return f"images:{folder}"


@bad(r"rows\.npy: row 3 holds 300\.0 at \(1, 0\), outside \[0, 1\]")
def range_too_wide(folder: Path) -> str:
    rows = FLOATS[..., None].copy()
    rows[3, 1] = 300
    return saved(folder, rows)


@bad(r"row 5 holds nan at \(0, 0\)")
def not_a_number(folder: Path) -> str:
    rows = FLOATS[..., None].copy()
    rows[5, 0] = np.nan
    return saved(folder, rows)


@bad(r"row 0 holds -1\.0")
def negative(folder: Path) -> str:
    return saved(folder, FLOATS[..., None] - 1)


@bad(r"missing values in column 'x0' \(1\) of 40 rows\. Use --missing mean")
def vector_not_a_number(folder: Path) -> str:
    rows = FLOATS.copy()
    rows[5, 0] = np.nan
    return saved(folder, rows)


@bad(r"infinite, or too large for float32, in column 'x1' \(1\)")
def infinite_vector(folder: Path) -> str:
    rows = FLOATS.copy()
    rows[3, 1] = -np.inf
    return saved(folder, rows)


@bad(r"values are int64; make them uint8")
def integers(folder: Path) -> str:
    return saved(folder, BYTES.astype(np.int64))


@bad(r"values are uint16")
def wide_bytes(folder: Path) -> str:
    return saved(folder, BYTES.astype(np.uint16))


@bad(r"has shape \(200,\)")
def one_dimension(folder: Path) -> str:
    return saved(folder, FLOATS.ravel())


@bad(r"has shape \(40, 0\)")
def empty_rows(folder: Path) -> str:
    return saved(folder, FLOATS[:, :0])


@bad(r"images have 10 channels .* the last axis")
def channels_first(folder: Path) -> str:
    return saved(folder, np.zeros((20, 3, 10, 10), np.uint8))


@bad(r"rows\.npy holds Python objects")
def pickled_objects(folder: Path) -> str:
    return saved(folder, np.array([{"a": 1}] * 20, dtype=object), allow_pickle=True)


@bad(r"rows\.npy is not a \.npy or \.npz file, or is damaged")
def truncated_npy(folder: Path) -> str:
    source = saved(folder, BYTES)
    path = folder / "rows.npy"
    path.write_bytes(path.read_bytes()[:-10])
    return source


@bad(r"rows\.npz is not a \.npy or \.npz file, or is damaged")
def truncated_npz(folder: Path) -> str:
    path = folder / "rows.npz"
    np.savez_compressed(path, x=BYTES)
    path.write_bytes(path.read_bytes()[:-40])
    return f"npz:{path}"


@bad(r"rows\.npz is not a \.npy or \.npz file, or is damaged")
def corrupt_npz(folder: Path) -> str:
    path = folder / "rows.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8))
    data = bytearray(path.read_bytes())
    data[500:600] = bytes(100)
    path.write_bytes(data)
    return f"npz:{path}"


@bad(r"rows\.npy is not a \.npy or \.npz file, or is damaged")
def text_file(folder: Path) -> str:
    (folder / "rows.npy").write_text("1,2,3\n")
    return f"npz:{folder / 'rows.npy'}"


@bad(r"rows\.npy is not a \.npy or \.npz file, or is damaged")
def empty_file(folder: Path) -> str:
    (folder / "rows.npy").touch()
    return f"npz:{folder / 'rows.npy'}"


@bad(r"holds a, b; name the array of rows x")
def unnamed_arrays(folder: Path) -> str:
    np.savez(folder / "rows.npz", a=BYTES, b=BYTES)
    return f"npz:{folder / 'rows.npz'}"


@bad(r"40 rows have labels of shape \(39,\)")
def labels_too_few(folder: Path) -> str:
    np.savez(folder / "rows.npz", x=BYTES, y=np.arange(39))
    return f"npz:{folder / 'rows.npz'}"


@bad(r"labels are float64; make them integers")
def labels_not_integers(folder: Path) -> str:
    np.savez(folder / "rows.npz", x=BYTES, y=np.linspace(0, 1, 40))
    return f"npz:{folder / 'rows.npz'}"


@bad(r"test rows are uint8 \(2, 2\) and training rows uint8 \(2, 3\)")
def other_test_rows(folder: Path) -> str:
    np.savez(folder / "rows.npz", x_train=BYTES, x_test=BYTES[:, :, :2])
    return f"npz:{folder / 'rows.npz'}"


@bad(r"has 3 rows, too few to split: none is left for (test|validation)")
def too_few_rows(folder: Path) -> str:
    return saved(folder, BYTES[:3])


@bad(
    r"2 sizes, height x width: 2 of 8x9 \(\S*a\.png, and 1 more\), 1 of 8x8 \(\S*c\.png\)"
    r".* --image-size"
)
def sizes_differ(folder: Path) -> str:
    for name, size in (("a", (9, 8)), ("b", (9, 8)), ("c", (8, 8))):
        Image.new("L", size, 200).save(folder / f"{name}.png")
    return f"images:{folder}"


@bad(r"1 of 1 files cannot be used: 1 damaged \(\S*a\.png: .*truncated.*\).* --bad-images skip")
def truncated_picture(folder: Path) -> str:
    path = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    return f"images:{folder}"


@bad(r"1 of 1 files cannot be used: 1 no picture of a kind that is read \(\S*a\.jpg\)")
def no_picture(folder: Path) -> str:
    (folder / "a.jpg").write_text("not a picture")
    return f"images:{folder}"


@bad(r"the largest byte is 1 of 255.* multiply them by 255")
def masks_of_ones(folder: Path) -> str:
    return saved(folder, BYTES % 2)


@bad(r"has no array 'z'; it holds a, b")
def missing_array(folder: Path) -> str:
    np.savez(folder / "rows.npz", a=BYTES, b=BYTES)
    return f"npz:{folder / 'rows.npz'}:z"


@bad(r"rows\.npy is not a \.npz file; leave out ':x'")
def array_of_npy(folder: Path) -> str:
    return saved(folder, BYTES) + ":x"


@bad(r"holds 1\.5 at \(0,\), outside \[0, 1\]")
def bernoulli_beyond_its_range(folder: Path) -> str:
    """The likelihood is not a density: the test below sets --likelihood."""
    np.savez(folder / "rows.npz", x_train=FLOATS, x_test=FLOATS * 0 + 1.5)
    return f"npz:{folder / 'rows.npz'}"


@bad(r"\(test rows\): row 2 holds inf at \(3,\), not a finite number")
def infinite_test_rows(folder: Path) -> str:
    rows = FLOATS * 3
    rows[2, 3] = np.inf
    np.savez(folder / "rows.npz", x_train=FLOATS, x_test=rows)
    return f"npz:{folder / 'rows.npz'}"


@bad(r"t\.csv is not a \.npy or \.npz .* Do you mean table:.*t\.csv\?")
def csv(folder: Path) -> str:
    (folder / "t.csv").write_text("1,2\n3,4\n")
    return f"npz:{folder / 't.csv'}"


@bad(r"p\.zip is not a folder.* reads \.zip files: unpack it")
def zip_of_pictures(folder: Path) -> str:
    (folder / "p.zip").write_bytes(b"PK")
    return f"images:{folder / 'p.zip'}"


@bad(r"holds no pictures \(2 files found, 0 taken, 2 left out \(2 \.parquet\)\)")
def folder_of_parquet(folder: Path) -> str:
    (folder / "0.parquet").write_bytes(b"PAR1")
    (folder / "1.parquet").write_bytes(b"PAR1")
    return f"images:{folder}"


@bad(r"pipe\.npz cannot be read: not a plain file")
def fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe.npz")
    return f"npz:{folder / 'pipe.npz'}"


@bad(r"rows\.npy holds 4,000,000\.0 GB of values; at most half of the available memory")
def header_of_a_huge_array(folder: Path) -> str:
    header = {"descr": "|u1", "fortran_order": False, "shape": (4 * 10**15, 1)}
    return save_header(folder / "rows.npy", header)


def save_header(path: Path, header: dict[str, Any]) -> str:
    """Write a .npy file that has only a header."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    return f"npz:{path}"


@bad(r"rows\.npz holds 6,000\.0 GB of values; at most half of the available memory")
def bomb(folder: Path) -> str:
    """Three arrays that are too large together. Each is only a header."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (500, 10**9)}
    save_header(folder / "x.npy", header)
    with zipfile.ZipFile(folder / "rows.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "x_test", "y_test"):
            archive.write(folder / "x.npy", f"{name}.npy")
    return f"npz:{folder / 'rows.npz'}"


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_rejected_with_a_message(
    case: str, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    make, words = BAD[case]
    source = tmp_path / "source"
    source.mkdir()
    argument = make(source)
    before = sorted(tmp_path.rglob("*"))
    of_bits = ("--likelihood", "bernoulli") if case == "bernoulli_beyond_its_range" else ()
    status, out, err = cli("train", "--data", argument, "--out", tmp_path / "run", *of_bits)
    assert status == 2
    assert re.fullmatch(rf"latentd: .*{words}.*\.\n", err), err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_npy_header_is_read_up_to_a_limit(tmp_path: Path) -> None:
    """A .npy of version 2 can declare a header of gigabytes that compresses to almost nothing."""
    path = tmp_path / "rows.npz"
    size = 1 << 25
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x02\x00" + struct.pack("<I", size) + b" " * size
        archive.writestr("x.npy", header)
    tracemalloc.start()
    try:
        with pytest.raises(TrainingError, match="or is damaged"):
            read_numpy(path)
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()
