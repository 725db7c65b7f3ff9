"""Image files of three formats through a real server: sizes, fits, streams, and what comes back."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from latentd import images
from latentd.client import AsyncClient, Client, DataPoint, SampledPoint
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.training.readers.picture import read_picture
from tests.support.spatial_bundle import blocks, publish_spatial

FORMS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Any:
    root = tmp_path_factory.mktemp("bundles")
    publish_spatial(root)
    return module_servers(root, default_model="spatial")


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Of 50 x 70 pixels (width x height) once it is turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_files_get_the_valid_size_nearest_to_the_first(
    client: Client, server: Any, photo: Path, tmp_path: Path, fit: str
) -> None:
    Image.new("RGBA", (500, 20), (9, 9, 9, 0)).save(tmp_path / "wide.webp", lossless=True)
    files = [photo, tmp_path / "wide.webp"]
    x = np.stack([read_picture(file, "RGB", (72, 48), fit == "crop") for file in files])
    encoding = client.encode(files, fit=fit)
    np.testing.assert_array_equal(encoding.mean, client.encode(x).mean)
    np.testing.assert_array_equal(client.reconstruct(files, fit=fit).x, client.reconstruct(x).x)
    asynchronous = asyncio.run(_encode(server.target, files, fit))
    np.testing.assert_array_equal(asynchronous.mean, encoding.mean)
    (answer,) = client.stream_reconstruct([files], fit=fit, include_latents=True)
    assert answer.errors == {}
    np.testing.assert_array_equal(answer.mean, encoding.mean)
    end = DataPoint(photo, fit)
    assert client.interpolate(end, end, steps=2).x.shape == (2, 72, 48, 3)


async def _encode(target: str, files: list[Path], fit: str) -> Any:
    async with AsyncClient(target) as client:
        return await client.encode(files, fit=fit)


def test_stream_takes_the_size_of_the_first_file_that_can_be_read(
    client: Client, photo: Path
) -> None:
    small = images.encode_files(blocks(1, 16, 16))[0]
    (answer,) = client.stream_reconstruct([[b"GIF89a", photo, small]], fit="crop")
    assert answer.errors == {0: "not a readable PNG, JPEG or WebP file"}
    assert answer.x.shape == (2, 72, 48, 3)


def test_photo_is_refused_without_fit(client: Client, photo: Path) -> None:
    for fit in ("", "refuse"):
        with pytest.raises(InvalidArgument) as refused:
            client.encode([photo], fit=fit)
        said = str(refused.value)
        assert said.startswith("x.images.files[0]: h is 70; expected a multiple of 8")
        assert said.endswith(
            "The nearest valid lengths are h 72 and w 48. Use FIT_RESIZE or FIT_CROP."
        )


def test_fit_is_checked(client: Client, server: Any, photo: Path) -> None:
    for x, fit, message in (
        ([photo], "stretch", "fit: unknown value 'stretch'"),
        (blocks(1, 32, 32), "crop", "fit: only image files are made to fit"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            client.encode(x, fit=fit)
    rows = pb.Rows(images=pb.Images(files=[photo.read_bytes()], fit=9))  # type: ignore[arg-type]
    with grpc.insecure_channel(server.target) as channel:
        call = VaeServiceStub(channel).Encode
        with pytest.raises(grpc.RpcError, match=r"x\.images\.fit: unknown enum value 9"):
            call(pb.EncodeRequest(x=rows))


def test_other_calls_do_not_wait_for_large_files(server: Any) -> None:
    large = io.BytesIO()
    Image.new("RGB", (1500, 1000)).save(large, "JPEG")
    request = pb.EncodeRequest(
        x=pb.Rows(images=pb.Images(files=[large.getvalue()], fit=pb.FIT_RESIZE))
    )
    pool = (os.cpu_count() or 1) + 4  # of the threads that other work has, at most 32
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        with images._ROOM.take(Image.new("L", (9400, 9500))):  # none is left
            waiting = [stub.Encode.future(request, timeout=60) for _ in range(2 * pool)]
            x = pb.Rows(images=pb.Images(files=images.encode_files(blocks(1, 32, 32))))
            stub.Reconstruct(pb.ReconstructRequest(x=x, format=pb.FORMAT_PNG), timeout=30)
            assert not any(call.done() for call in waiting)
        assert {call.result().mean.shape[0] for call in waiting} == {1}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_sent_back_in_every_format(client: Client, form: str) -> None:
    x = blocks(2, 32, 64)
    result = client.reconstruct(x, format=form)
    assert [Image.open(io.BytesIO(file)).format for file in result.files] == [FORMS[form]] * 2
    assert result.x.shape == x.shape
    again = client.reconstruct(result.files, format="png").x  # each is accepted, too
    if form == "png":
        np.testing.assert_array_equal(again, x)
    for sent in (client.sample(2, format=form), client.decode(np.zeros((1, 4, 4, 4)), format=form)):
        assert Image.open(io.BytesIO(sent.files[0])).format == FORMS[form]
    steps = client.interpolate(SampledPoint(1), SampledPoint(2), steps=3, format=form)
    assert len(steps.files) == 3
    with pytest.raises(InvalidArgument, match="unknown format 'gif'"):
        client.sample(1, format="gif")
