"""diffusers' own remote_decode and remote_encode, unmodified, against a model of diffusers.

Expected is always what the same model computes here, in torch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from PIL import Image
from torch import Tensor

from latentd.__main__ import main
from latentd.client import Client
from tests.support.server import RunningServer, server_starter
from tests.support.small_diffusers import kl_autoencoder, of_net, to_bytes
from tests.training.test_adopt_diffusers import SIZES, SOURCE, photographs

pytestmark = pytest.mark.timeout(600)

SCALE, SHIFT = 0.5, 0.25  # of the model
OTHER_SCALE, OTHER_SHIFT = 0.18215, -0.5  # of clients that scale otherwise


class Served(NamedTuple):
    net: Any
    server: RunningServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server.http_port}/vae/mine"

    def pixels(self, z: Tensor) -> np.ndarray:
        """What the net makes of its own latents z'."""
        return to_bytes(self.net.decode(z.float()).sample)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    net, folder = kl_autoencoder(), tmp_path_factory.mktemp("remote")
    net.save_pretrained(folder / "vae")
    (folder / "card.toml").write_text(SOURCE + SIZES)
    where = ["--bundles", str(folder / "models"), "--name", "mine"]
    words = ["adopt", "--diffusers", str(folder), "--card", str(folder / "card.toml")]
    assert main([*words, *where]) == 0
    with server_starter() as start:
        yield Served(net, start(folder / "models", http_port=0))


@pytest.fixture(scope="module")
def latents(served: Served) -> Tensor:
    """z' of a photograph, (1, 4, 8, 16): 32 x 64 pixels."""
    mean: Tensor = served.net.encode(of_net(photographs(32, 64, 1))).latent_dist.mean
    return mean.contiguous()  # diffusers 0.42 sends the memory of a tensor, whatever its strides


def close(found: Any, expected: np.ndarray, most: int = 1) -> None:
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= most


SCALINGS = {
    "the model's": {"scaling_factor": SCALE, "shift_factor": SHIFT},
    "another": {"scaling_factor": OTHER_SCALE, "shift_factor": OTHER_SHIFT},
    "another without a shift": {"scaling_factor": OTHER_SCALE},
    "none": {"do_scaling": False},
}


def scaled(z: Tensor, scaling: dict[str, Any]) -> Tensor:
    if "scaling_factor" not in scaling:
        return z
    return (z - scaling.get("shift_factor", 0)) * scaling["scaling_factor"]


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_latents_in_every_dtype_and_scaling(served, latents, scaling, dtype):
    sent = scaled(latents, scaling).to(dtype)
    back = sent.float() / scaling.get("scaling_factor", 1) + scaling.get("shift_factor", 0)
    image = remote_decode(
        f"{served.url}/decode", sent, image_format="png", output_type="pil", **scaling
    )
    close(image, served.pixels(back)[0])


@pytest.mark.filterwarnings("ignore:.*do_scaling.*:FutureWarning")
def test_do_scaling_means_the_models_own_constants(served, latents):
    image = remote_decode(
        f"{served.url}/decode", (latents - SHIFT) * SCALE, image_format="png", do_scaling=True
    )
    close(image, served.pixels(latents)[0])


def test_every_output(served, latents):
    endpoint, processor = f"{served.url}/decode", VaeImageProcessor()
    expected = served.pixels(latents)

    def decode(**how: Any) -> Any:
        return remote_decode(
            endpoint, scaled(latents, SCALINGS["the model's"]), **SCALINGS["the model's"], **how
        )

    png, jpeg = decode(image_format="png"), decode(image_format="jpg")
    assert (png.format, jpeg.format) == ("png", "jpeg")
    close(png, expected[0])
    close(jpeg, expected[0], most=60)
    assert np.abs(np.asarray(jpeg).astype(int) - expected[0]).mean() < 5

    close(decode(output_type="pt", return_type="pil", partial_postprocess=True), expected[0])
    pixels = decode(output_type="pt", return_type="pt", partial_postprocess=True)
    assert pixels.dtype == torch.uint8
    close(pixels, expected)

    raw = decode(output_type="pt", return_type="pt")
    assert (raw.dtype, raw.shape) == (torch.float32, (1, 3, 32, 64))
    close(to_bytes(raw), expected)
    close(decode(output_type="pt", return_type="pil", processor=processor), expected[0])

    unit = decode(output_type="pil", return_type="pt", processor=processor)
    close((unit.permute(0, 2, 3, 1).numpy() * 255).round(), expected)
    (image,) = decode(output_type="pil", return_type="pil", processor=processor)
    close(image, expected[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tensors_come_back_in_the_dtype_of_the_latents(served, latents, dtype):
    sent = latents.to(dtype)
    for how in ({"output_type": "pt"}, {"output_type": "pil", "processor": VaeImageProcessor()}):
        found = remote_decode(
            f"{served.url}/decode", sent, do_scaling=False, return_type="pt", **how
        )
        assert found.dtype == dtype
        signed = found.float() if how["output_type"] == "pt" else found.float() * 2 - 1
        close(to_bytes(signed), served.pixels(sent), most=2)


def test_several_latents_are_tensors(served, latents):
    several = torch.cat((latents, latents + 0.1, latents - 0.1))
    found = remote_decode(
        f"{served.url}/decode",
        several,
        do_scaling=False,
        output_type="pt",
        return_type="pt",
        partial_postprocess=True,
    )
    close(found, served.pixels(several))
    with pytest.raises(RuntimeError, match="3 latents sent, and an image file holds one picture"):
        remote_decode(f"{served.url}/decode", several, do_scaling=False)


def test_packed_latents(served, latents):
    rows, channels, h, w = latents.shape
    patches = latents.view(rows, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    packed = patches.reshape(rows, h // 2 * (w // 2), channels * 4)  # as FluxPipeline packs them
    image = remote_decode(
        f"{served.url}/decode",
        packed,
        do_scaling=False,
        image_format="png",
        height=32,
        width=64,
    )
    close(image, served.pixels(latents)[0])
    with pytest.raises(RuntimeError, match="expected \\[rows, 16, 16\\] for 32 x 32 pixels"):
        remote_decode(f"{served.url}/decode", packed, do_scaling=False, height=32, width=32)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_encode_an_image_file(served, latents, scaling):
    factors = {name: value for name, value in scaling.items() if name != "do_scaling"}
    image = Image.fromarray(photographs(32, 64, 1)[0])
    found = remote_encode(f"{served.url}/encode", image, **factors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, scaled(latents, scaling), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_encode_a_tensor_in_its_dtype(served, latents, dtype):
    x = of_net(photographs(32, 64, 1)).to(dtype).contiguous()
    found = remote_encode(f"{served.url}/encode", x)
    assert found.dtype == dtype
    tolerance = 0.05 if dtype != torch.float32 else 1e-3  # its pixels are rounded, too
    assert (found.float() - latents).abs().mean() < tolerance


def test_encode_bytes_and_what_decode_gives_of_them(served, latents):
    x = torch.from_numpy(photographs(32, 64, 1))
    z = remote_encode(f"{served.url}/encode", x)
    torch.testing.assert_close(z, latents, rtol=1e-3, atol=1e-3)
    back = remote_decode(f"{served.url}/decode", z, do_scaling=False, image_format="png")
    close(back, served.pixels(latents)[0])


def test_encode_draws_on_request(served):
    image = Image.fromarray(photographs(32, 64, 1)[0])
    scaling = {"scaling_factor": SCALE, "shift_factor": SHIFT}
    found = remote_encode(f"{served.url}/encode?sample_mode=sample&seed=7", image, **scaling)
    with Client(served.server.target) as client:
        expected = client.encode(photographs(32, 64, 1), draw=True, seed=7).z
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("shape=1&shape=4&shape=8&shape=8", b"", 400, "expected 1024 bytes for shape"),
        ("shape=1&shape=4&shape=8&shape=99", bytes(12672), 400, "z.shape: "),
        ("shape=1&shape=3&shape=8&shape=8", bytes(768), 400, "z.shape: "),
        ("shape=-1", b"", 400, "shape: '-1' is not an integer"),
        ("", b"", 400, "shape: missing"),
        ("shape=1&dtype=int8", b"", 400, "dtype: 'int8' is not one of float32, float16"),
        ("shape=1&output_type=mp4", b"", 501, "output_type=mp4"),
        ("shape=1&output_type=gif", b"", 400, "output_type: "),
        ("shape=1&image_format=gif", b"", 400, "image_format: "),
        ("shape=1&scaling_factor=0", b"", 400, "scaling_factor: "),
        ("shape=1&scaling_factor=inf", b"", 400, "scaling_factor: "),
        ("shape=1&scaling_factor=x", b"", 400, "scaling_factor: 'x' is not a number"),
        ("shape=1&scaling_factor=1_0", b"", 400, "scaling_factor: '1_0' is not a number"),
        ("shape=1&shift_factor=1", b"", 400, "shift_factor: given alone"),
        ("shape=1&scaling=1", b"", 400, "scaling: unknown parameter"),
        ("shape=1&shape=16&shape=16", bytes(1024), 400, "Send height and width, in pixels"),
        ("shape=1&shape=4&shape=8&shape=8", b"\xff" * 1024, 400, "z.data: "),
    ],
)
def test_errors_of_decode(served, query, body, status, words):
    found = requests.post(f"{served.url}/decode?{query}", data=body, timeout=120)
    assert found.status_code == status
    assert words in found.json()["error"]


@pytest.mark.parametrize(
    ("query", "body", "words"),
    [
        ("", b"", "x.images.files[0]: "),
        ("", b"no picture", "x.images.files[0]: "),
        (
            "shape=1&shape=3&shape=32&shape=32&dtype=float32",
            b"\x7f" * 12288,
            "numbers from -1 to 1",
        ),
        ("shape=1&shape=3&shape=33&shape=32&dtype=uint8", bytes(3168), "x.tensor.shape: "),
        ("shape=32&shape=32", bytes(4096), "expected 4 lengths"),
        ("sample_mode=mean", b"", "sample_mode: 'mean' is not one of argmax, sample"),
    ],
)
def test_errors_of_encode(served, query, body, words):
    found = requests.post(f"{served.url}/encode?{query}", data=body, timeout=120)
    assert found.status_code == 400
    assert words in found.json()["error"]


def test_unknown_model(served):
    with pytest.raises(RuntimeError, match="Model 'other' is not served; served models: mine"):
        remote_decode(
            f"{served.url.replace('mine', 'other')}/decode",
            torch.zeros(1, 4, 8, 8),
            do_scaling=False,
        )


def test_curl_and_pillow_understand_the_answer(served, latents):
    query = "&".join(f"shape={length}" for length in latents.shape)
    found = requests.post(
        f"{served.url}/decode?{query}&image_format=png", data=latents.numpy().tobytes(), timeout=120
    )
    assert found.headers["content-type"] == "image/png"
    close(Image.open(io.BytesIO(found.content)), served.pixels(latents)[0])
