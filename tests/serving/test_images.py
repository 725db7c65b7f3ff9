"""Image files of every mode become rows of the model, or are rejected with the reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from latentd import codec, images
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb

GRAY = DataSpec("image", (4, 4), "uint8", (0, 255))
COLOR = DataSpec("image", (4, 4, 3), "uint8", (0, 255))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def unwritable_exif() -> bytes:
    """Orientation 6, and an XResolution of type SRATIONAL (-1, 0), as some cameras write it."""
    entries = (
        struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
        struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 24 + 4),
    )
    header = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + struct.pack("<I", 0)
    return b"Exif\0\0" + header + struct.pack("<ii", -1, 0)


def read(data: bytes, x: DataSpec, fit: str = "refuse") -> np.ndarray:
    return images.decode_image(data, x, "photo", fit, None, images.FIT_OF_COMMAND)


def test_image_is_rotated_when_pillow_cannot_rewrite_its_exif() -> None:
    upright = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    data = encoded(Image.fromarray(upright), "JPEG", quality=100)
    rotated = encoded(Image.fromarray(upright), "JPEG", quality=100, exif=unwritable_exif())
    np.testing.assert_array_equal(read(rotated, GRAY), np.rot90(read(data, GRAY), -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_pillow_does(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    data = encoded(image, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read(data, GRAY), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_image_is_not_rotated_when_its_exif_is_damaged() -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    plain = read(encoded(image, "JPEG", quality=100), GRAY)
    data = encoded(image, "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(read(data, GRAY), plain)


def test_any_error_of_pillow_is_an_error_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    good = encoded(Image.new("L", (4, 4)))
    opened = Image.open

    def open_or_raise(file: io.BytesIO, **options: Any) -> Image.Image:
        if file.getbuffer() == b"bad":
            raise struct.error("argument out of range")
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", open_or_raise)
    rows = pb.Rows(images=pb.Images(files=[good, b"bad"]))
    with pytest.raises(
        InvalidArgument, match=r"x\.images\.files\[1\]: not a readable PNG, JPEG or WebP file"
    ):
        codec.read_rows(rows, GRAY, 8, "x")
    pixels, _, errors = codec.decode_rows_lenient(rows, GRAY, 8, "x")
    assert (len(pixels), errors) == (2, {1: "not a readable PNG, JPEG or WebP file"})


def transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = 1
    return image


MODES = {
    "gray": (encoded(Image.new("L", (4, 4), 100)), 100, (100, 100, 100)),
    "RGB": (encoded(Image.new("RGB", (4, 4), (255, 0, 0))), 76, (255, 0, 0)),
    "RGBA": (encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 51))), 204, (204, 204, 204)),
    "LA": (encoded(Image.new("LA", (4, 4), (0, 0))), 255, (255, 255, 255)),
    "palette": (encoded(transparent_palette(), transparency=1), 255, (255, 255, 255)),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), 76, (255, 0, 0)),
    "16 bits": (
        encoded(Image.fromarray(np.full((4, 4), 257 * 100 + 128, np.uint16))),
        100,
        (100, 100, 100),
    ),
    "1 bit": (encoded(Image.new("1", (4, 4), 1)), 255, (255, 255, 255)),
}


@pytest.mark.parametrize("mode", MODES)
def test_fit_converts_every_mode(mode: str) -> None:
    data, gray, color = MODES[mode]
    assert (read(data, GRAY, fit="resize") == gray).all()
    assert (read(data, COLOR, fit="resize") == color).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "palette", "CMYK", "16 bits"])
def test_error_names_fit_when_it_is_missing(mode: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(MODES[mode][0], GRAY)
    assert "Pass --fit resize or --fit crop to convert it" in str(refused.value)


def test_floating_point_image_is_rejected() -> None:
    data = encoded(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(InvalidArgument, match=r"photo: floating-point pixels \(mode F\)"):
        read(data, GRAY, fit="resize")


def test_transparency_is_never_dropped_silently() -> None:
    palette = MODES["palette"][0]
    with pytest.raises(InvalidArgument, match="of mode RGB, got mode P with transparency"):
        read(palette, COLOR)
    with pytest.raises(InvalidArgument, match="Use FIT_RESIZE or FIT_CROP to convert it"):
        images.decode_files([palette], COLOR, "x")


def test_image_of_too_many_pixels_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (40, 40)))
    for limit in (100, 1000):  # it has 1,600: Pillow raises beyond twice the limit, else warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with (
            images.pillow_warnings_ignored(),
            pytest.raises(InvalidArgument, match=f"photo: more than {limit:,} pixels"),
        ):
            read(data, GRAY, fit="resize")


@pytest.mark.parametrize("fit", ["refuse", "resize", "crop"])
def test_floating_point_pixels_are_never_told_to_resize(fit):
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(file, "TIFF")
    x = DataSpec("image", (4, 4), "uint8", (0, 255))
    with pytest.raises(InvalidArgument, match=r"floating-point pixels .* 8 bits") as rejected:
        images.decode_image(file.getvalue(), x, "file", fit, formats=None)
    assert "FIT_" not in str(rejected.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_size_is_that_of_the_turned_picture(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 24)).save(path, exif=turned)
    assert images.height_and_width(path.read_bytes(), "x") == (40, 24)


def test_size_of_a_png_needs_no_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (40, 24)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("pixels are decoded"))
    assert images.height_and_width((tmp_path / "a.png").read_bytes(), "x") == (24, 40)
