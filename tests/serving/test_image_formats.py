"""Image files of every format, mode and orientation become what training reads, or are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from latentd import images
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.training.readers.picture import read_picture

SIDES = (12, 8)  # width, height
SPECS = {
    "L": DataSpec("image", (5, 6), "uint8", (0, 255)),
    "RGB": DataSpec("image", (5, 6, 3), "uint8", (0, 255)),
}
MODES = {
    "PNG": ("L", "RGB", "RGBA", "P", "transparent P", "I;16", "LA", "1"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
}
CASES = [(form, mode) for form, modes in MODES.items() for mode in modes]


def picture(mode: str) -> Image.Image:
    """Random pixels."""
    rng = np.random.default_rng(3)
    width, height = SIDES
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), np.uint16))
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
    values = rng.integers(0, 256, (height, width, channels), np.uint8)
    if mode in ("P", "transparent P"):
        return Image.fromarray(values.repeat(3, axis=2)).quantize(16)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    return Image.fromarray(values if channels > 1 else values[..., 0], mode)


def file_of(image: Image.Image, form: str, orientation: int = 1, **options: Any) -> bytes:
    if orientation != 1:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_late_exif(png: bytes) -> bytes:
    """The same PNG with its EXIF behind its pixels."""
    at = png.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(png[at : at + 4], "big")
    return png[:at] + png[end:-12] + png[at:end] + png[-12:]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(("form", "mode"), CASES)
def test_server_reads_a_file_as_training_does(
    tmp_path: Path, form: str, mode: str, orientation: int
) -> None:
    options = {"transparency": 3} if mode == "transparent P" else {}
    data = file_of(picture(mode), form, orientation, **options)
    (tmp_path / "a").write_bytes(data)
    for color, x in SPECS.items():
        for fit in ("resize", "crop"):
            got = images.decode_files([data], x, "x", fit)[0]
            wanted = read_picture(tmp_path / "a", color, x.shape[:2], fit == "crop")
            np.testing.assert_array_equal(got, wanted)
    height, width = images.height_and_width(data, "x")
    assert (height, width) == (SIDES if orientation in (6, 7) else SIDES[::-1])
    lossless = {"L": ("L", "1"), "RGB": ("L", "1", "RGB", "P")}
    for color, accepted in lossless.items():
        shape = (height, width, 3) if color == "RGB" else (height, width)
        x = DataSpec("image", shape, "uint8", (0, 255))
        if mode in accepted:
            got = images.decode_files([data], x, "x")[0]
            np.testing.assert_array_equal(got, read_picture(tmp_path / "a", color))
        else:
            with pytest.raises(InvalidArgument, match=r"x\[0\]: .* Use FIT_RESIZE or FIT_CROP"):
                images.decode_files([data], x, "x")


def test_crop_is_pillows_and_resize_stretches() -> None:
    image = picture("RGB")
    x = SPECS["RGB"]
    (cropped,) = images.decode_files([file_of(image, "PNG")], x, "x", "crop")
    wanted = ImageOps.fit(image, (6, 5), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(cropped, np.asarray(wanted))
    (resized,) = images.decode_files([file_of(image, "PNG")], x, "x", "resize")
    wanted = image.resize((6, 5), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resized, np.asarray(wanted))


@pytest.mark.parametrize("fit", ["refuse", "resize"])
def test_exif_behind_the_pixels_of_a_png_is_applied(tmp_path: Path, fit: str) -> None:
    early = file_of(picture("L"), "PNG", 6)
    late = with_late_exif(early)
    assert late != early
    assert images.height_and_width(late, "x") == (12, 8)
    x = DataSpec("image", (12, 8), "uint8", (0, 255))
    (tmp_path / "late.png").write_bytes(late)
    got = images.decode_files([early, late], x, "x", fit)
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[1], read_picture(tmp_path / "late.png", "L"))
    wrong = DataSpec("image", (8, 12), "uint8", (0, 255))
    with pytest.raises(InvalidArgument, match="got 8 x 12"):
        images.decode_files([late], wrong, "x")


@pytest.mark.parametrize("kind", [b"iTXt", b"zTXt"])
def test_orientation_in_text_behind_the_pixels_of_a_png_is_applied(
    tmp_path: Path, kind: bytes
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    hexadecimal = f"\nexif\n  0\n{exif.tobytes().hex()}\n".encode()
    body = {
        b"iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
        b"zTXt": b"Raw profile type exif\0\0" + zlib.compress(hexadecimal),
    }[kind]
    png = file_of(picture("L"), "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    late = png[:-12] + chunk + png[-12:]
    (tmp_path / "late.png").write_bytes(late)
    assert images.height_and_width(late, "x") == (12, 8)
    x = DataSpec("image", (12, 8), "uint8", (0, 255))
    (got,) = images.decode_files([late], x, "x")
    np.testing.assert_array_equal(got, read_picture(tmp_path / "late.png", "L"))


def test_size_of_a_png_with_late_exif_needs_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    late = with_late_exif(file_of(picture("L"), "PNG", 6))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert images.height_and_width(late, "x") == (12, 8)


def test_damaged_pixels_before_late_exif_are_not_black() -> None:
    late = with_late_exif(file_of(picture("L"), "PNG", 3))
    at = late.index(b"IDAT") + 4
    body = b"not zlib"
    length = int.from_bytes(late[at - 8 : at - 4], "big")
    crc = struct.pack(">I", zlib.crc32(b"IDAT" + body))
    damaged = late[: at - 8] + struct.pack(">I", 8) + b"IDAT" + body + crc + late[at + length + 4 :]
    for fit in ("refuse", "crop"):
        with pytest.raises(InvalidArgument, match="damaged image file"):
            images.decode_files([damaged], DataSpec("image", (8, 12), "uint8", (0, 255)), "x", fit)


@pytest.mark.parametrize("fit", ["refuse", "resize", "crop"])
@pytest.mark.parametrize("form", MODES)
def test_truncated_file_is_refused(form: str, fit: str) -> None:
    x = DataSpec("image", (*SIDES[::-1], 3), "uint8", (0, 255))
    whole = file_of(picture("RGB"), form)
    for length in (0, 3, 20, len(whole) // 2, len(whole) * 3 // 4):
        with pytest.raises(InvalidArgument, match=r"x\[0\]: "):
            images.decode_files([whole[:length]], x, "x", fit)


def test_sixteen_bits_per_color_are_refused() -> None:
    ihdr = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    raw = zlib.compress(b"\0" + struct.pack(">6H", *range(1000, 7000, 1000)))

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
    x = DataSpec("image", (1, 2, 3), "uint8", (0, 255))
    with pytest.raises(InvalidArgument, match=r"x\[0\]: 16 bits per channel\. Use FIT_RESIZE"):
        images.decode_files([png], x, "x")
    assert images.decode_files([png], x, "x", "resize").shape == (1, 1, 2, 3)


def test_multi_picture_file_of_a_phone_is_a_jpeg(tmp_path: Path) -> None:
    first, second = picture("RGB"), Image.new("RGB", (4, 4))
    data = file_of(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    (tmp_path / "a.jpg").write_bytes(data)
    got = images.decode_files([data], SPECS["RGB"], "x", "resize")[0]
    np.testing.assert_array_equal(got, read_picture(tmp_path / "a.jpg", "RGB", (5, 6)))


def test_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        data = file_of(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        (row,) = images.decode_files([data], SPECS["RGB"], "x")
        assert (row == (255, 0, 0)).all()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_refused_and_the_accepted_named(form: str) -> None:
    data = file_of(Image.new("RGB", (6, 5)), form)
    with pytest.raises(InvalidArgument, match="not a readable PNG, JPEG or WebP file"):
        images.decode_files([data], SPECS["RGB"], "x", "resize")


@pytest.mark.parametrize("form", MODES)
def test_bomb_is_refused_by_its_header(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(Image.new("RGB", (40, 40)), form)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with images.pillow_warnings_ignored(), pytest.raises(InvalidArgument, match="1,500 pixels"):
        images.decode_files([data], SPECS["RGB"], "x", "crop")


def test_files_of_a_request_have_a_limit_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file_of(picture("RGB"), form) for form in MODES] + [b"no file"]
    assert images.count_pixels(files, "x") == 3 * 12 * 8
    monkeypatch.setattr(images, "_MAX_PIXELS_OF_ALL", 2 * 12 * 8)
    images.count_pixels(files[:2], "x")
    with pytest.raises(InvalidArgument, match="x: the first 3 files have more than 192 pixels"):
        images.count_pixels(files, "x")


def test_jpeg_of_many_scans_is_refused() -> None:
    data = file_of(picture("L"), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    images.decode_files([data], SPECS["L"], "x", "resize")
    with pytest.raises(InvalidArgument, match="more than 100 scans"):
        images.decode_files([data[:-2] + scan * 100 + data[-2:]], SPECS["L"], "x", "resize")


@pytest.mark.parametrize("form", images.FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_rows_are_written_in_every_format(form: str, mode: str) -> None:
    y, x = np.mgrid[:40, :48]
    row = np.stack([y * 4, x * 4, y + x], axis=2)[..., : 3 if mode == "RGB" else 1].astype(np.uint8)
    (file,) = images.encode_files([row], form)
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == form
        back = np.asarray(image.convert(mode)).reshape(row.shape).astype(int)
    assert abs(back - row).max() <= (0 if form == "PNG" else 24)
    if form == "JPEG" and mode == "RGB":
        assert image.layer[0][1:3] == (1, 1), "colors are not subsampled"
