"""map.npz is read as it was written, and every other file is refused in a sentence."""

from __future__ import annotations

import dataclasses
import io
import random
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd import latent_map
from latentd.errors import BundleError
from latentd.latent_map import LatentMap, is_pooled, sprite_sheet
from tests.support.fuzz_inputs import mutant
from tests.support.latent_maps import toy_map
from tests.support.toy_bundle import toy_manifest


def changed(**arrays: Any) -> bytes:
    return dataclasses.replace(toy_map(), **arrays).to_npz()


def refused(data: bytes, posterior: str = "gaussian") -> str:
    with pytest.raises(BundleError) as caught:
        latent_map.read(data, toy_manifest(posterior=posterior))
    assert caught.value.reason == "map"
    return str(caught.value)


def test_map_is_read_as_it_was_written() -> None:
    written, found = toy_map(), latent_map.read(toy_map().to_npz(), toy_manifest())
    for field in dataclasses.fields(LatentMap):
        expected, array = getattr(written, field.name), getattr(found, field.name)
        if expected is None:
            assert array is None
        else:
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype
    assert len(found) == 7


def test_labels_scores_and_pictures_may_be_missing() -> None:
    optional = ("classes", "label", "reconstruction_error", "kl", "sprites", "sprite_shape")
    data = changed(**dict.fromkeys(optional))
    assert latent_map.read(data, toy_manifest()).label is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mean": np.zeros((7, 15), np.float32)}, "mean has dtype float32 and shape (7, 15)"),
        ({"mean": np.zeros((7, 16))}, "mean has dtype float64"),
        ({"center": np.full(16, np.nan, np.float32)}, "center has NaN or infinity"),
        ({"position": np.zeros((1, 2), np.float32)}, "it has 1 rows; expected 2 to 20000"),
        ({"unit_kl": None}, "it has no unit_kl"),
        ({"kl": None}, "it needs both reconstruction_error and kl, or neither"),
        ({"sprite_shape": None}, "it needs both sprites and sprite_shape"),
        ({"label": np.full(7, 2, np.int32)}, "a label has no name in classes"),
        ({"label": np.full(7, -1, np.int32)}, "a label has no name in classes"),
        ({"classes": np.arange(3)}, "classes has dtype int64; expected text"),
        ({"classes": np.array(["a", "\ud800"])}, "surrogates not allowed"),
        ({"sprites": np.zeros(9, np.uint8)}, "sprites is not a lossy WebP file"),
        ({"sprites": np.zeros((3, 3), np.uint8)}, "expected the bytes of a file"),
        ({"sprite_shape": np.array([4, 5])}, "the sprites' sheet has (12, 12) pixels"),
        ({"sprite_shape": np.array([64, 64])}, "sprites are 64 x 64; expected 1 to 32 pixels"),
        ({"x": np.zeros((7, 4, 4), np.uint8)}, "images are sprites, and it has x"),
    ],
)
def test_map_of_other_arrays_is_refused(arrays: dict[str, Any], said: str) -> None:
    message = refused(changed(**arrays))
    assert message.startswith("map.npz is not a map of this model's rows: ")
    assert said in message


def test_map_of_a_model_with_a_point_posterior_has_no_kl() -> None:
    assert "posterior is a point" in refused(changed(), "point")
    no_kl = changed(unit_kl=None, reconstruction_error=None, kl=None)
    assert latent_map.read(no_kl, toy_manifest(posterior="point")).unit_kl is None


def test_files_that_would_allocate_much_are_refused_before() -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mean.npy", bytes(65 << 20))
    assert "it would unpack to 65 MiB; the limit is 64 MiB" in refused(bomb.getvalue())
    header = io.BytesIO()
    huge = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 16)}
    np.lib.format.write_array_header_1_0(header, huge)
    lying = io.BytesIO()
    with zipfile.ZipFile(lying, "w") as file:
        file.writestr("mean.npy", header.getvalue() + bytes(64))
    assert "cannot reshape array of size 16" in refused(lying.getvalue())


def test_objects_unknown_arrays_and_other_files_are_refused() -> None:
    assert "OBJECT" in refused(changed(classes=np.array([print], object)))
    file = io.BytesIO()
    np.savez(file, more=np.zeros(2))
    assert "it has an unknown array 'more'" in refused(file.getvalue())
    assert "missing" in refused(changed(mean=None))
    for data in (b"", b"PK", b"{}", toy_map().to_npz()[:-20]):
        refused(data)


def test_damaged_bytes_are_a_map_or_refused() -> None:
    whole, chance = toy_map().to_npz(), random.Random(0)
    outcomes = set()
    for _ in range(2000):
        try:
            outcomes.add(len(latent_map.read(mutant(whole, chance), toy_manifest())))
        except BundleError as error:
            outcomes.add(error.reason)
    assert "map" in outcomes


@pytest.mark.parametrize(
    ("shape", "sprite"),
    [((28, 28), (28, 28)), ((64, 48, 3), (32, 24)), ((1, 400, 1), (1, 32)), ((8, 8, 1), (8, 8))],
)
def test_sprites_are_small_and_in_order(shape: tuple[int, ...], sprite: tuple[int, int]) -> None:
    grays = np.array([0, 120, 240, 60, 180], np.uint8)
    images = np.broadcast_to(grays.reshape(-1, *[1] * len(shape)), (5, *shape)).copy()
    data, found = sprite_sheet(images)
    assert found == sprite
    height, width = sprite
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert sheet.shape == (2 * height, 3 * width)
    lines = sheet.reshape(2, height, 3, width).swapaxes(1, 2).reshape(-1, height, width)
    centers = lines[:5, height // 2, width // 2].astype(int)
    assert np.abs(centers - grays).max() <= 12  # the file is compressed with loss


def test_large_spatial_latents_are_pooled() -> None:
    assert is_pooled((4, 32, 32))
    assert not is_pooled((4, 16, 16))
    assert not is_pooled((4096,))
