"""The owner's own inputs and outputs: how their file is read, and what they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentd.training.adopt import expected
from latentd.training.errors import TrainingError
from tests.support.candidates import lines_of, refusal, spoiled
from tests.support.spatial_bundle import blocks, decoded, encoded, spatial_manifest


def arrays(height: int = 32, width: int = 32, prefix: str = "") -> dict[str, np.ndarray]:
    """Two rows, and three latents."""
    x = blocks(2, height, width)
    mean = encoded(x)
    z = np.concatenate([mean, 0.5 * mean[:1]])
    found = {"x": x, "mean": mean, "z": z, "decoded_x": decoded(z)}
    return {prefix + name: array for name, array in found.items()}


def read(folder: Path, given: dict[str, Any], **manifest: Any) -> tuple[expected.Expected, ...]:
    np.savez(folder / "expected.npz", **given)
    return expected.read(folder / "expected.npz", spatial_manifest(**manifest))


def test_rows_of_several_sizes_are_compared(tmp_path: Path) -> None:
    found = read(tmp_path, arrays() | arrays(16, 64, "wide."))
    assert [rows.name for rows in found] == ["", "wide"]
    lines = "\n".join(lines_of(spoiled(expected=found)))
    assert "from the arrays of --expected: decoded_x" in lines
    assert ", mean" in lines


@pytest.mark.parametrize("names", [("x", "mean"), ("z", "decoded_x")])
def test_one_half_is_enough(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = read(tmp_path, {name: arrays()[name] for name in names})
    assert f"--expected: {names[1]}" in "\n".join(lines_of(spoiled(expected=found)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("wide.mean", lambda mean: 2 * mean),
        ("wide.decoded_x", lambda x: x[..., ::-1]),
    ],
)
def test_other_outputs_are_refused(tmp_path: Path, name: str, wrong: Any) -> None:
    given = arrays(16, 64, "wide.")
    found = read(tmp_path, given | {name: wrong(given[name])})
    assert f"another {name} than --expected has" in refusal(spoiled(expected=found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latents": np.zeros(3)}, "has an array latents; expected x, mean, log_var, z"),
        ({"mean": ...}, "has x, but not mean; give both"),
        ({"z": ...}, "has decoded_x, but not z; give both"),
        ({"wide.log_var": np.zeros(3)}, "has wide.log_var, but not wide.x"),
        ({"x": np.zeros((2, 32, 32, 3))}, "x is float64; expected uint8. All arrays are as"),
        ({"mean": np.zeros((2, 4, 4, 4), int)}, "mean is int64; expected float32"),
        ({"x": np.zeros((2, 3, 32, 32), np.uint8)}, r"x has the shape \[2, 3, 32, 32\]; expected"),
        ({"x": np.zeros((2, 36, 32, 3), np.uint8)}, "h is 36; expected a multiple of 8"),
        ({"mean": np.zeros((2, 8, 4, 4))}, r"mean has the shape .* of shape \[4, h/8, w/8\]"),
        ({"mean": np.zeros((3, 4, 4, 4))}, "mean has 3 rows; expected 2"),
        ({"mean": np.zeros((2, 4, 4, 8))}, "x, mean, z, decoded_x are of more than one size"),
        (dict.fromkeys(("x", "mean", "z", "decoded_x"), ...), "has no arrays"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    given = {k: v for k, v in (arrays() | changes).items() if v is not ...}
    with pytest.raises(TrainingError, match=words):
        read(tmp_path, given)


def test_a_point_has_no_log_variance(tmp_path: Path) -> None:
    given = arrays() | {"log_var": arrays()["mean"]}
    assert set(read(tmp_path, given)[0].arrays) == set(given)
    with pytest.raises(TrainingError, match="has log_var, but the latent is a point"):
        read(tmp_path, given, posterior="point", prior=None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"text", "is not an .npz file, or is damaged; write arrays"),
        (b"", "is not an .npz file, or is damaged"),
        (b"PK\x03\x04", "is not an .npz file, or is damaged"),
    ],
)
def test_no_npz_is_refused(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "expected.npz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TrainingError, match=words):
        expected.read(path, spatial_manifest())


@pytest.mark.parametrize(
    ("at", "byte"),
    [
        pytest.param(6, 1, id="encrypted"),
        pytest.param(6, 32, id="patched data"),
        pytest.param(8, 77, id="unknown compression"),
    ],
)
def test_entries_that_cannot_be_read_are_refused(tmp_path: Path, at: int, byte: int) -> None:
    """Bytes of the entry's header: flags and method, in both places where an archive has them."""
    path = tmp_path / "expected.npz"
    np.savez(path, z=arrays()["z"])
    data = bytearray(path.read_bytes())
    for start in (0, data.index(b"PK\x01\x02") + 2):
        data[start + at] |= byte
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="or is damaged; write arrays of numbers"):
        expected.read(path, spatial_manifest())


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expected.npz"
    np.savez_compressed(path, z=arrays()["z"])
    data = bytearray(path.read_bytes())
    data[200:260] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="or is damaged; write arrays of numbers"):
        expected.read(path, spatial_manifest())


def test_objects_are_not_read(tmp_path: Path) -> None:
    """They would be a pickle, which can run code."""
    with pytest.raises(TrainingError, match="holds Python objects; write arrays of n"):
        read(tmp_path, {"x": np.array([{}], dtype=object)})


def test_one_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(TrainingError, match=r"is not an \.npz file, or is damaged"):
        expected.read(tmp_path / "x.npy", spatial_manifest())
