"""What is said about data that cannot be used; and that nothing is written then."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BYTES = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)
FLOATS = np.linspace(0, 1, 40 * 5, dtype=np.float32).reshape(40, 5)

Make = Callable[[Path], str]
BAD: dict[str, tuple[Make, str]] = {}


def bad(words: str) -> Callable[[Make], Make]:
    """A maker of bad data under a folder, returning --data; and what must be said about it."""

    def register(make: Make) -> Make:
        BAD[make.__name__] = (make, words)
        return make

    return register


def saved(folder: Path, array: np.ndarray, allow_pickle: bool = False) -> str:
    np.save(folder / "rows.npy", array, allow_pickle=allow_pickle)
    return f"npz:{folder / 'rows.npy'}"


@bad(r"'csv:x' is not a source: use digits, idx:DIR")
def unknown_scheme(folder: Path) -> str:
    return "csv:x"


@bad(r"should read npz:PATH")
def no_path(folder: Path) -> str:
    return "npz:"


@bad(r"should read digits, with nothing after it")
def digits_with_a_path(folder: Path) -> str:
    return "digits:here"


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


@bad(r"rows\.npy: row 3 holds 300\.0 at \(1,\), outside \[0, 1\]")
def range_too_wide(folder: Path) -> str:
    rows = FLOATS.copy()
    rows[3, 1] = 300
    return saved(folder, rows)


@bad(r"row 5 holds nan at \(0,\)")
def not_a_number(folder: Path) -> str:
    rows = FLOATS.copy()
    rows[5, 0] = np.nan
    return saved(folder, rows)


@bad(r"row 0 holds -1\.0")
def negative(folder: Path) -> str:
    return saved(folder, FLOATS - 1)


@bad(r"values are int64; make them uint8")
def integers(folder: Path) -> str:
    return saved(folder, BYTES.astype(np.int64))


@bad(r"values are uint16")
def wide_bytes(folder: Path) -> str:
    return saved(folder, BYTES.astype(np.uint16))


@bad(r"values are float16")
def half_floats(folder: Path) -> str:
    return saved(folder, FLOATS.astype(np.float16))


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


@bad(r"rows\.npy is no \.npy or \.npz file, or is damaged")
def truncated_npy(folder: Path) -> str:
    source = saved(folder, BYTES)
    path = folder / "rows.npy"
    path.write_bytes(path.read_bytes()[:-10])
    return source


@bad(r"rows\.npz is no \.npy or \.npz file, or is damaged")
def truncated_npz(folder: Path) -> str:
    path = folder / "rows.npz"
    np.savez_compressed(path, x=BYTES)
    path.write_bytes(path.read_bytes()[:-40])
    return f"npz:{path}"


@bad(r"rows\.npz is no \.npy or \.npz file, or is damaged")
def corrupt_npz(folder: Path) -> str:
    path = folder / "rows.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8))
    data = bytearray(path.read_bytes())
    data[500:600] = bytes(100)
    path.write_bytes(data)
    return f"npz:{path}"


@bad(r"rows\.npy is no \.npy or \.npz file, or is damaged")
def text_file(folder: Path) -> str:
    (folder / "rows.npy").write_text("1,2,3\n")
    return f"npz:{folder / 'rows.npy'}"


@bad(r"rows\.npy is no \.npy or \.npz file, or is damaged")
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


@bad(r"a\.png is 8x8 grey and \S*b\.png is 8x9 grey")
def sizes_differ(folder: Path) -> str:
    for name, size in (("a", (8, 8)), ("b", (9, 8)), ("c", (7, 8))):
        Image.new("L", size).save(folder / f"{name}.png")
    return f"images:{folder}"


@bad(r"a\.png is 8x8 grey and \S*b\.png is 8x8 RGB")
def modes_differ(folder: Path) -> str:
    Image.new("L", (8, 8)).save(folder / "a.png")
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    return f"images:{folder}"


@bad(r"a\.png has mode RGBA; convert it")
def transparent_picture(folder: Path) -> str:
    Image.new("RGBA", (8, 8)).save(folder / "a.png")
    return f"images:{folder}"


@bad(r"a\.png cannot be read")
def truncated_picture(folder: Path) -> str:
    path = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    return f"images:{folder}"


@bad(r"a\.jpg cannot be read")
def no_picture(folder: Path) -> str:
    (folder / "a.jpg").write_text("not a picture")
    return f"images:{folder}"


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_in_a_sentence(
    case: str, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    make, words = BAD[case]
    source = tmp_path / "source"
    source.mkdir()
    argument = make(source)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = cli("train", "--data", argument, "--out", tmp_path / "run")
    assert status == 2
    assert re.fullmatch(rf"latentd-train: .*{words}.*\.\n", err), err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda data: b"not gzip at all", "cannot be read"),
        ("train-labels-idx1-ubyte", lambda data: data[:-5], "promises 60 bytes .* holds 55"),
        ("train-labels-idx1-ubyte", lambda data: b"\0\0\x09" + data[3:], "no IDX file"),
        ("t10k-labels-idx1-ubyte", lambda data: b"", r"no IDX file .* begins with nothing"),
        (
            "t10k-labels-idx1-ubyte",
            lambda data: data[:7] + b"\x09" + data[8:-1],
            r"10 rows have labels of shape \(9,\)",
        ),
        ("t10k-images-idx3-ubyte.gz", None, "has neither t10k-images-idx3-ubyte.gz nor"),
    ],
)
def test_bad_idx_is_refused_in_a_sentence(
    idx_folder: Path,
    cli: Callable[..., tuple[int, str, str]],
    name: str,
    damage: Callable[[bytes], bytes] | None,
    words: str,
) -> None:
    path = idx_folder / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    out = idx_folder.parent / "run"
    status, _, err = cli("train", "--data", f"idx:{idx_folder}", "--out", out)
    assert status == 2
    assert re.fullmatch(rf"latentd-train: .*{words}.*\.\n", err), err
    assert not out.exists()
