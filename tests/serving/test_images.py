"""Image files of every mode become the model's rows, or are refused with the true reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd import codec, images
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb

GREY = DataSpec("image", (4, 4), "uint8", (0, 255))
COLOR = DataSpec("image", (4, 4, 3), "uint8", (0, 255))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_that_cannot_be_written_again() -> bytes:
    """Orientation 6, and an XResolution of type SRATIONAL (-1, 0), as some cameras write it."""
    entries = (
        struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
        struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 24 + 4),
    )
    header = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + struct.pack("<I", 0)
    return b"Exif\0\0" + header + struct.pack("<ii", -1, 0)


def read(data: bytes, x: DataSpec, resize: bool = False) -> np.ndarray:
    return images.decode_image(data, x, "photo", None, resize)


def test_a_photograph_is_turned_though_its_exif_cannot_be_written_again() -> None:
    upright = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    data = encoded(Image.fromarray(upright), "JPEG", quality=100)
    turned = encoded(
        Image.fromarray(upright), "JPEG", quality=100, exif=exif_that_cannot_be_written_again()
    )
    np.testing.assert_array_equal(read(turned, GREY), np.rot90(read(data, GREY), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    data = encoded(image, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read(data, GREY), np.asarray(wanted))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_means_no_turn() -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    plain = read(encoded(image, "JPEG", quality=100), GREY)
    data = encoded(image, "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(read(data, GREY), plain)


def test_whatever_pillow_raises_belongs_to_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    good = encoded(Image.new("L", (4, 4)))
    opened = Image.open

    def odd(file: io.BytesIO, **options: Any) -> Image.Image:
        if file.getbuffer() == b"odd":
            raise struct.error("argument out of range")
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", odd)
    rows = pb.Rows(png=pb.PngImages(files=[good, b"odd"]))
    with pytest.raises(InvalidArgument, match=r"x\.png\.files\[1\]: not a readable PNG file"):
        codec.read_rows(rows, GREY, "bernoulli", 8, "x")
    pixels, _, errors = codec.decode_rows_lenient(rows, GREY, "bernoulli", 8, "x")
    assert (len(pixels), errors) == (2, {1: "not a readable PNG file"})


def transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = 1
    return image


MODES = {
    "grey": (encoded(Image.new("L", (4, 4), 100)), 100, (100, 100, 100)),
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
def test_resize_converts_every_mode_by_the_stated_rule(mode: str) -> None:
    data, grey, color = MODES[mode]
    assert (read(data, GREY, resize=True) == grey).all()
    assert (read(data, COLOR, resize=True) == color).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "palette", "CMYK", "16 bits"])
def test_without_resize_the_refusal_says_to_pass_it(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=r"takes L\. Pass --resize to convert it"):
        read(MODES[mode][0], GREY)


def test_what_has_no_stated_range_is_refused_with_that_reason() -> None:
    data = encoded(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(InvalidArgument, match=r"photo: pixels that are floats \(mode F\)"):
        read(data, GREY, resize=True)


def test_transparency_is_never_dropped_in_silence() -> None:
    palette = MODES["palette"][0]
    with pytest.raises(
        InvalidArgument, match="mode P with transparency, where the model takes RGB"
    ):
        read(palette, COLOR)
    with pytest.raises(InvalidArgument, match="8-bit RGB without alpha"):
        images.decode_pngs([palette], COLOR, "x")


def test_an_image_of_too_many_pixels_is_refused_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (40, 40)))
    for most in (100, 1000):  # of its 1,600: Pillow raises beyond twice the bound, and else warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with (
            images.oddities_ignored(),
            pytest.raises(InvalidArgument, match=f"photo: more than {most:,} pixels"),
        ):
            read(data, GREY, resize=True)
