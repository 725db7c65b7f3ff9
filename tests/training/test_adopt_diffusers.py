"""Autoencoders of diffusers are adopted and served: over the wire they answer as diffusers does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from latentd import bundle
from latentd.client import Client
from tests.support.server import StartServer
from tests.support.small_diffusers import (
    audio_autoencoder,
    kl_autoencoder,
    of_net,
    tiny_autoencoder,
    to_bytes,
)

pytestmark = pytest.mark.timeout(600)  # each adopts a model, which a loaded machine does slowly

SOURCE = 'source = "a test"\nlicense = "MIT"\n'
SIZES = "[sizes]\n" + "".join(f"{a} = {{ min = 16, max = 132, default = 32 }}\n" for a in "hw")
SECONDS = "[sizes]\nt = { min = 320, max = 16000, default = 8000 }\n"
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "safetensors", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from latentd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A KL autoencoder, and the folder of a pipeline that has it."""
    net, folder = kl_autoencoder(), tmp_path_factory.mktemp("pipeline")
    net.save_pretrained(folder / "vae")
    return net, folder


@pytest.fixture(scope="module")
def optimum(kl: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graphs as optimum exports them, by a plain torch.onnx.export."""
    net, saved = kl
    folder = tmp_path_factory.mktemp("optimum")
    for part, module, x, names in (
        ("vae_encoder", Moments(net), torch.zeros(1, 3, 32, 32), ("sample", "latent_parameters")),
        ("vae_decoder", Decoder(net), torch.zeros(1, 4, 8, 8), ("latent_sample", "sample")),
    ):
        (folder / part).mkdir()
        shutil.copy(saved / "vae" / "config.json", folder / part)
        free = {0: "batch_size", 2: "height", 3: "width"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (x,),
                folder / part / "model.onnx",
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes=dict.fromkeys(names, free),
                opset_version=18,
                dynamo=False,
            )
    return folder


class Moments(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample: Tensor) -> Tensor:
        moments: Tensor = self.net.encode(sample).latent_dist.parameters
        return moments


class Decoder(Moments):
    def forward(self, latent_sample: Tensor) -> Tensor:
        x: Tensor = self.net.decode(latent_sample).sample
        return x


def photographs(height: int, width: int, count: int = 2) -> np.ndarray:
    picture = load_sample_images().images[1]
    return np.stack([picture[50 * i : 50 * i + height, 90 : 90 + width] for i in range(count)])


def adopt(cli: Any, folder: Path, *words: object, card: str = SOURCE + SIZES) -> str:
    """The output of the command; it publishes folder/models/mine."""
    (folder / "card.toml").write_text(card)
    where = ("--bundles", folder / "models", "--name", "mine")
    status, out, err = cli("adopt", *words, "--card", folder / "card.toml", *where)
    assert status == 0, err
    return str(out)


def assert_answers_as(net: Any, target: str, scale: float, shift: float) -> None:
    """With the scaling of diffusers' pipelines, at sizes that no export saw."""
    with Client(target) as client:
        for size in ((64, 64), (24, 100), (132, 60)):
            x = photographs(*size)
            encoded, encoding = net.encode(of_net(x)), client.encode(x)
            if hasattr(encoded, "latents"):
                mean = encoded.latents
                assert encoding.log_var is None
            else:
                mean = encoded.latent_dist.mean
                log_var = encoded.latent_dist.logvar.numpy() + 2 * np.log(scale)
                np.testing.assert_allclose(encoding.log_var, log_var, rtol=1e-4, atol=1e-4)
            z = ((mean - shift) * scale).numpy()
            np.testing.assert_allclose(encoding.mean, z, rtol=1e-4, atol=1e-4)
            for latents in (z, z + np.float32(0.5)):
                decoded = to_bytes(net.decode(torch.from_numpy(latents) / scale + shift).sample)
                found = client.decode(latents).x.astype(int)
                assert np.abs(found - decoded.astype(int)).max() <= 1


def test_kl_autoencoder_of_a_pipeline(
    kl: tuple[Any, Path], cli: Any, tmp_path: Path, start_server: StartServer
) -> None:
    net, folder = kl
    lines = adopt(cli, tmp_path, "--diffusers", folder)
    assert "scale 0.5, shift 0.25" in lines
    manifest = bundle.load(tmp_path / "models" / "mine" / "1").manifest
    assert manifest.z.shape.json == [4, "h/4", "w/4"]
    assert (manifest.posterior, manifest.prior) == ("gaussian", None)
    assert manifest.origin["route"] == "diffusers"
    assert set(manifest.origin["files"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert_answers_as(net, start_server(tmp_path / "models").target, 0.5, 0.25)


def test_weights_that_do_not_fit_are_refused(
    kl: tuple[Any, Path], cli: Any, tmp_path: Path
) -> None:
    """diffusers itself would go on with random numbers in their place."""
    folder = shutil.copytree(kl[1] / "vae", tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, weights, {"format": "pt"})
    (tmp_path / "card.toml").write_text(SOURCE)
    words = ("adopt", "--diffusers", folder, "--card", tmp_path / "card.toml")
    status, _, err = cli(*words, "--bundles", tmp_path / "models", "--name", "mine")
    assert status == 2
    assert "missing keys decoder.conv_in.bias, 1 in all. Save the model again" in err


def test_tiny_autoencoder(cli: Any, tmp_path: Path, start_server: StartServer) -> None:
    net = tiny_autoencoder()
    net.save_pretrained(tmp_path / "tiny")
    adopt(cli, tmp_path, "--diffusers", tmp_path / "tiny")
    manifest = bundle.load(tmp_path / "models" / "mine" / "1").manifest
    assert (manifest.posterior, manifest.z.shape.json) == ("point", [4, "h/4", "w/4"])
    assert_answers_as(net, start_server(tmp_path / "models").target, 1.0, 0.0)


def test_audio_of_any_length(cli: Any, tmp_path: Path, start_server: StartServer) -> None:
    """Its own code makes the log-variance, by a softplus."""
    net = audio_autoencoder()
    net.save_pretrained(tmp_path / "oobleck")
    adopt(cli, tmp_path, "--diffusers", tmp_path / "oobleck", card=SOURCE + SECONDS)
    manifest = bundle.load(tmp_path / "models" / "mine" / "1").manifest
    assert (manifest.x.shape.json, manifest.z.shape.json) == (["t", 2], [8, "t/32"])
    assert (manifest.x.kind, manifest.x.sample_rate) == ("audio", 8000)
    with Client(start_server(tmp_path / "models").target) as client:
        for length in (8000, 1952):
            x = np.random.default_rng(0).uniform(-1, 1, (2, length, 2)).astype(np.float32)
            of_x = net.encode(torch.from_numpy(x.transpose(0, 2, 1))).latent_dist
            encoding = client.encode(x)
            np.testing.assert_allclose(encoding.mean, of_x.mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(encoding.log_var, of_x.logvar, rtol=1e-4, atol=1e-4)
            decoded = net.decode(of_x.mean).sample.numpy().transpose(0, 2, 1)
            np.testing.assert_allclose(client.decode(encoding.mean).x, decoded, atol=1e-4)


def test_graphs_of_optimum_without_torch(
    kl: tuple[Any, Path], optimum: Path, tmp_path: Path, start_server: StartServer
) -> None:
    """What an owner computed with PyTorch elsewhere comes along."""
    x = photographs(48, 80)
    z = (kl[0].encode(of_net(x)).latent_dist.mean - 0.25) * 0.5
    pixels = to_bytes(kl[0].decode(z / 0.5 + 0.25).sample)
    np.savez(tmp_path / "expected.npz", x=x, mean=z.numpy(), z=z.numpy(), decoded_x=pixels)
    (tmp_path / "card.toml").write_text(SOURCE + SIZES)
    command = ["adopt", "--optimum", optimum, "--expected", tmp_path / "expected.npz"]
    command += ["--card", tmp_path / "card.toml"]
    command += ["--bundles", tmp_path / "models", "--name", "mine"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "config.json of AutoencoderKL: scale 0.5, shift 0.25" in done.stdout
    assert "from the arrays of --expected: decoded_x" in done.stdout
    manifest = bundle.load(tmp_path / "models" / "mine" / "1").manifest
    assert (manifest.origin["route"], manifest.origin["class"]) == ("optimum", "AutoencoderKL")
    assert len(manifest.origin["files"]) == 4
    assert_answers_as(kl[0], start_server(tmp_path / "models").target, 0.5, 0.25)


def test_what_neither_the_card_nor_the_folder_says_is_asked_for_at_once(
    optimum: Path, cli: Any, tmp_path: Path
) -> None:
    for path in shutil.copytree(optimum, tmp_path / "copy").glob("*/config.json"):
        values = json.loads(path.read_text())
        del values["scaling_factor"], values["sample_size"]
        path.write_text(json.dumps(values))
    status, out, err = cli(
        *("adopt", "--optimum", tmp_path / "copy", "--bundles", tmp_path, "--name", "mine")
    )
    assert status == 2
    assert "there is no scaling_factor, so the card must give scale and shift" in out
    assert "the card must: sizes.h, sizes.w, scale, shift, license, source." in err
