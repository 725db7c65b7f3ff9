"""How data is read and split."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from latentd.columns import Column
from latentd.training.config import Config
from latentd.training.data import load
from latentd.training.dataset import Dataset, RowSpec

BYTES = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)
FLOATS = np.linspace(0, 1, 40 * 5, dtype=np.float32).reshape(40, 5)


def everything(dataset: Dataset) -> list[bytes]:
    parts = (dataset.train.x, dataset.validation.x, dataset.test.x)
    return sorted(row.numpy().tobytes() for x in parts for row in x)


def test_forms_of_rows_in_words_differ() -> None:
    columns = (Column("a"), Column("b"))
    specs = RowSpec((64,), "uint8"), RowSpec((64,), "uint8", text=True), RowSpec((2,), "float32")
    assert [*map(str, (*specs, RowSpec((2,), "float32", columns=columns)))] == [
        "uint8 rows of shape (64,)",
        "texts of up to 63 bytes",
        "float32 rows of shape (2,)",
        "rows of 2 columns",
    ]


def test_digits_are_bytes_over_the_whole_range() -> None:
    dataset = load(Config())
    assert dataset.spec == RowSpec((8, 8), "uint8")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 1797
    levels = torch.unique(dataset.train.x)
    assert levels.tolist() == [round(v * 255 / 16) for v in range(17)]
    assert dataset.train.y is not None
    assert set(dataset.train.y.tolist()) == set(range(10))


def test_mnist_5k_has_500_digits_of_each_class() -> None:
    dataset = load(Config(data="mnist-5k"))
    assert dataset.spec == RowSpec((28, 28), "uint8")
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [4050, 450, 500]
    labels = torch.cat([part.y for part in parts if part.y is not None])
    assert torch.bincount(labels).tolist() == [500] * 10
    assert torch.bincount(parts[2].y).min() > 30  # the file is sorted by class; the parts are not
    ink = torch.cat([part.x for part in parts]).float().mean(0)
    assert ink.max() == ink[6:22, 8:20].max(), "digits are in the middle of their images"
    assert ink[0].max() < 2, "the edges are black"


def test_labels_stay_with_their_rows() -> None:
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    label = {image.tobytes(): int(y) for image, y in zip(images, digits.target, strict=True)}
    dataset = load(Config())
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.y is not None
        assert [label[row.numpy().tobytes()] for row in part.x] == part.y.tolist()


def test_split_uses_each_row_once_and_follows_the_seed(tmp_path: Path) -> None:
    rows = np.arange(100, dtype=np.uint8).reshape(100, 1)
    np.save(tmp_path / "rows.npy", rows)
    config = Config(
        data=f"npz:{tmp_path / 'rows.npy'}", val_fraction=0.2, test_fraction=0.3, seed=1
    )
    dataset = load(config)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [56, 14, 30]
    assert everything(dataset) == sorted(row.tobytes() for row in rows)
    assert load(config).digest == dataset.digest
    other = load(Config(data=config.data, val_fraction=0.2, test_fraction=0.3, seed=2))
    assert other.digest != dataset.digest
    assert not torch.equal(other.test.x, dataset.test.x)


def test_test_rows_of_the_data_are_never_trained_on(idx_folder: Path) -> None:
    dataset = load(Config(data=f"idx:{idx_folder}"))
    assert dataset.own_test
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [54, 6, 10]
    assert dataset.spec == RowSpec((9, 10), "uint8")
    assert dataset.test.y is not None
    assert dataset.test.y.tolist() == list(range(10))
    learned = {row.numpy().tobytes() for row in torch.cat((dataset.train.x, dataset.validation.x))}
    assert not learned & {row.numpy().tobytes() for row in dataset.test.x}


@pytest.mark.parametrize(
    ("arrays", "spec", "rows"),
    [
        ({"anything": BYTES}, RowSpec((2, 3), "uint8"), [32, 4, 4]),
        ({"x": FLOATS, "y": np.arange(40)}, RowSpec((5,), "float32"), [32, 4, 4]),
        ({"x": FLOATS.astype(np.float64), "z": BYTES}, RowSpec((5,), "float32"), [32, 4, 4]),
        ({"x_train": BYTES, "x_test": BYTES[:7]}, RowSpec((2, 3), "uint8"), [36, 4, 7]),
        ({"x_train": BYTES, "y_train": np.arange(40)}, RowSpec((2, 3), "uint8"), [32, 4, 4]),
    ],
)
def test_npz(tmp_path: Path, arrays: dict[str, np.ndarray], spec: RowSpec, rows: list[int]) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    dataset = load(Config(data=f"npz:{tmp_path / 'rows.npz'}"))
    assert dataset.spec == spec
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == rows


def test_array_of_an_npz_is_selected_after_a_colon(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=BYTES, b=FLOATS, y=np.arange(40))
    dataset = load(Config(data=f"npz:{tmp_path / 'rows.npz'}:b"))
    assert dataset.spec == RowSpec((5,), "float32")
    assert dataset.train.y is None
    colon = tmp_path / "rows:b"  # a file's own name comes first
    np.save(colon.with_suffix(".npy"), BYTES)
    assert load(Config(data=f"npz:{colon}.npy")).spec == RowSpec((2, 3), "uint8")


def test_tilde_means_the_home_folder(
    tmp_path: Path, idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "rows.npy", BYTES)
    assert load(Config(data="npz:~/rows.npy")).spec == RowSpec((2, 3), "uint8")
    assert load(Config(data="idx:~/idx")).spec == RowSpec((9, 10), "uint8")


def test_idx_files_are_found_by_their_other_names(idx_folder: Path) -> None:
    before = load(Config(data=f"idx:{idx_folder}"))
    for path in list(idx_folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert load(Config(data=f"idx:{idx_folder}")).digest == before.digest


def test_labels_can_be_a_column(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=BYTES, y=np.arange(40)[:, None])
    y = load(Config(data=f"npz:{tmp_path / 'rows.npz'}")).train.y
    assert y is not None
    assert y.shape == (32,)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f8"])
def test_floats_of_any_precision_are_accepted_within_rounding(
    tmp_path: Path, dtype: type[np.floating]
) -> None:
    rows = FLOATS.astype(dtype)
    rows[0, :3] = -1e-17, 1.0000000000000002, 1 + 5e-7
    np.save(tmp_path / "rows.npy", rows)
    dataset = load(Config(data=f"npz:{tmp_path / 'rows.npy'}", likelihood="bernoulli"))
    x = torch.cat((dataset.train.x, dataset.validation.x, dataset.test.x))
    assert (x.dtype, float(x.min()), float(x.max())) == (torch.float32, 0.0, 1.0)


def test_test_rows_outside_the_range_are_scored_when_the_likelihood_is_a_density(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = FLOATS[:10].copy()
    beyond[3, :2] = -0.5, 1.16504
    beyond[5, 0] = 7
    np.savez(tmp_path / "rows.npz", x_train=FLOATS, x_test=beyond)
    dataset = load(Config(data=f"npz:{tmp_path / 'rows.npz'}"))
    np.testing.assert_array_equal(dataset.test.x.numpy(), beyond)
    assert "3 of 50 values lie outside [0, 1], in 2 of 10 rows. They are scored as they are." in (
        capsys.readouterr().err
    )


def test_dark_bytes_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", BYTES % 17)
    load(Config(data=f"npz:{tmp_path / 'rows.npy'}"))
    assert "the largest byte is 16 of 255" in capsys.readouterr().err


def test_images_keep_their_size_and_colors(picture_folder: Path) -> None:
    dataset = load(Config(data=f"images:{picture_folder}"))
    assert dataset.spec == RowSpec((11, 18, 3), "uint8")
    files = [np.asarray(Image.open(path)) for path in picture_folder.rglob("*.png")]
    assert everything(dataset) == sorted(picture.tobytes() for picture in files)


def test_images_are_resized_on_request(picture_folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(picture_folder / "larger.jpg")
    config = Config(data=f"images:{picture_folder}", image_size="10x16")
    assert load(config).spec == RowSpec((10, 16, 3), "uint8")


def test_many_images_show_a_progress_bar_on_a_terminal(
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for i in range(300):
        Image.fromarray(rng.integers(0, 256, (8, 9), np.uint8)).save(tmp_path / f"{i:03}.png")
    assert load(Config(data=f"images:{tmp_path}")).spec == RowSpec((8, 9), "uint8")
    assert "300/300" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(Config(data=f"images:{tmp_path}"))
    assert "300/300" in capsys.readouterr().err


def test_fixed_binarization_is_drawn_once_from_its_own_seed() -> None:
    grey = load(Config())
    settings = {"likelihood": "bernoulli", "binarization": "fixed"}
    fixed, again, other = (
        load(Config(**settings)),  # type: ignore[arg-type]
        load(Config(**settings)),  # type: ignore[arg-type]
        load(Config(**settings, binarization_seed=1)),  # type: ignore[arg-type]
    )
    assert torch.equal(fixed.train.x, again.train.x)
    assert fixed.digest == again.digest
    assert not torch.equal(fixed.train.x, other.train.x)
    for part in ("train", "validation", "test"):
        x, was = getattr(fixed, part).x, getattr(grey, part).x
        assert x.dtype == was.dtype
        assert set(x.unique().tolist()) == {0, 255}
        assert not x[was == 0].any()  # the same rows in the same order
        assert (x[was == 255] == 255).all()
    assert abs(fixed.train.x.double().mean() - grey.train.x.double().mean()) < 0.5


@pytest.mark.data
def test_mnist_is_read_under_its_original_file_names() -> None:
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LATENTD_DATA", default)) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set LATENTD_DATA to the folder that holds mnist/")
    dataset = load(Config(data=f"idx:{folder}"))
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [54000, 6000, 10000]
    assert dataset.spec == RowSpec((28, 28), "uint8")
    assert dataset.test.y is not None
    assert dataset.test.y[:5].tolist() == [7, 2, 1, 0, 4]
