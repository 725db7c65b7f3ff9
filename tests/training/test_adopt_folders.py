"""What is read from the folders of optimum and of diffusers, and what is said where they fall
short. No weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentd.training.adopt.card import Card
from latentd.training.adopt.folders.diffusers import DiffusersFolder
from latentd.training.adopt.folders.optimum import OptimumFolder
from latentd.training.adopt.folders.vae_config import VaeConfig
from latentd.training.errors import TrainingError
from tests.support.foreign_graphs import kl_pair

KL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 64, 64],
    "latents_mean": None,
    "latents_std": None,
    "sample_size": 64,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}


def config(folder: Path, **changes: Any) -> VaeConfig:
    """Of a KL autoencoder with changes; ... leaves a key out."""
    values = {key: value for key, value in (KL | changes).items() if value is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return VaeConfig.read(folder / "config.json")


def filled(read: VaeConfig, posterior: str = "gaussian", **card: Any) -> tuple[Card, list[str]]:
    lines: list[str] = []
    return read.fill(Card.of(card), posterior, "hw", lines.append), lines


def test_config_fills_in_the_card(tmp_path: Path) -> None:
    card, lines = filled(config(tmp_path, shift_factor=0.1159))
    assert (card.scale, card.shift) == ((0.18215,), (0.1159,))
    assert (card.layout, card.range, card.clip_log_var) == ("NCHW", (-1, 1), (-30, 20))
    assert (card.posterior, card.prior) == ("gaussian", "none")
    assert card.sizes["h"] == card.sizes["w"] == {"min": 8, "max": 512, "default": 64}
    assert "scale 0.18215, shift 0.1159" in lines[0]
    assert (card.license, card.source) == (None, None)


def test_a_mean_and_a_deviation_of_each_channel(tmp_path: Path) -> None:
    """Pipelines: (z - mean) / std * scaling_factor."""
    card, _ = filled(config(tmp_path, latents_mean=[1, 2], latents_std=[2, 4], scaling_factor=0.5))
    assert (card.scale, card.shift) == ((0.25, 0.125), (1, 2))


def test_a_point_has_no_log_variance(tmp_path: Path) -> None:
    tiny = config(
        tmp_path,
        _class_name="AutoencoderTiny",
        block_out_channels=...,
        encoder_block_out_channels=[8, 8],
        sample_size=...,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    card, _ = filled(tiny, "point")
    assert (card.posterior, card.clip_log_var, card.sizes) == ("point", None, {})
    assert (card.scale, card.shift) == ((1,), (0,))


def test_audio_has_a_second_as_its_usual_length(tmp_path: Path) -> None:
    """No pipeline scales its latents, and its code does not clip the log-variance."""
    oobleck = VaeConfig(
        tmp_path / "config.json",
        {
            "_class_name": "AutoencoderOobleck",
            "audio_channels": 2,
            "downsampling_ratios": [2, 4, 4, 8, 8],
            "sampling_rate": 44100,
        },
    )
    lines: list[str] = []
    card = oobleck.fill(Card(), "gaussian", "t", lines.append)
    assert (card.layout, card.z_layout, card.channels) == ("NCT", "NCT", 2)
    assert (card.sample_rate, card.range, card.clip_log_var) == (44100, (-1, 1), None)
    assert (card.scale, card.shift, card.posterior) == ((1,), (0,), "gaussian")
    assert card.sizes == {"t": {"min": 4096, "max": 1320960, "default": 45056}}
    assert "t is 4096 to 1320960, usually 45056" in lines[1]
    card = oobleck.fill(Card.of({"mean": 0.0, "std": 0.1}), "gaussian", "t", lines.append)
    assert (card.range, card.mean) == (None, (0,))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scaling_factor": ...}, "there is no scaling_factor"),
        ({"scaling_factor": 4}, "scaling_factor is 4, the number of pixels of one position"),
        ({"latents_mean": [0, 0]}, "latents_mean has 2 numbers, and latents_std 0"),
        (
            {"latents_mean": [0], "latents_std": [1], "shift_factor": 0.5},
            "pipelines apply one of the two",
        ),
    ],
)
def test_scaling_that_is_not_clear_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    card, lines = filled(config(tmp_path, **changes))
    assert (card.scale, card.shift) == (None, None)
    assert why in lines[0]
    assert lines[0].endswith("so the card must give scale and shift")
    card, _ = filled(config(tmp_path, **changes), scale=0.5, shift=0.0)
    assert card.scale == (0.5,)


def test_the_card_may_not_contradict_the_config(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The card says scale = \(0.5,\); .*config.json"):
        filled(config(tmp_path), scale=0.5)


def test_the_card_may_not_normalize_otherwise(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"mean and std; diffusers .* the range \[-1, 1\]"):
        filled(config(tmp_path), mean=0.5, std=0.5)


def test_the_card_has_the_last_word_on_what_is_no_fact(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    h = {"min": 16, "max": 32, "default": 16}
    given = {"prior": "standard-normal", "license": "Apache-2.0", "sizes": {"h": h, "w": 64}}
    card, lines = filled(config(tmp_path), **given)
    assert (card.prior, card.license, card.sizes) == tuple(given.values())
    assert len(lines) == 1


@pytest.mark.parametrize("sizes", [[48, 96], 60, ...])
def test_sizes_are_those_of_the_config(tmp_path: Path, sizes: Any) -> None:
    card, lines = filled(config(tmp_path, sample_size=sizes))
    defaults = {axis: dict(size)["default"] for axis, size in card.sizes.items()}
    assert defaults == {...: {}, 60: {"h": 60, "w": 60}}.get(
        sizes if type(sizes) is not list else 0, {"h": 48, "w": 96}
    )
    assert len(lines) == 1 + bool(defaults)


def test_a_size_that_does_not_fit_is_left_to_the_card(tmp_path: Path) -> None:
    assert filled(config(tmp_path, sample_size=30))[0].sizes == {}


def test_another_class_says_nothing(tmp_path: Path) -> None:
    card, lines = filled(config(tmp_path, _class_name="AutoencoderKLWan"))
    assert card == Card()
    assert "AutoencoderKLWan" in lines[0]
    assert "the card must say it all" in lines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "has no _class_name"),
        ('{"_class_name": 3}', "_class_name is 3; expected a text"),
        ('{"_class_name": "A", "scaling_factor": 0}', "scaling_factor is 0; expected a number"),
        ('{"_class_name": "A", "shift_factor": NaN}', "shift_factor is nan"),
        ('{"_class_name": "A", "latents_std": [0]}', r"latents_std is \[0\]"),
        ('{"_class_name": "A", "sample_size": []}', r"sample_size is \[\]"),
    ],
)
def test_wrong_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TrainingError, match=words):
        VaeConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("---\nlicense: mit\ntags: []\n---\n", "mit"),
        ("---\nlicense: 'openrail++'\n---\n", "openrail++"),
        ("---\nlicense: other\nlicense_name: flux-dev\n---\n", "flux-dev"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# A model\nlicense: mit\n", None),
    ],
)
def test_the_license_is_that_of_the_readme(tmp_path: Path, front: str, license: str | None) -> None:
    (tmp_path / "README.md").write_text(front)  # of the pipeline
    assert filled(config(tmp_path / "vae"))[0].license == license


def optimum(folder: Path, **graphs: Any) -> Path:
    kl_pair(folder, **graphs)
    for part in ("vae_encoder", "vae_decoder"):
        config(folder / part)
    return folder


def test_optimum_folder_is_read(tmp_path: Path) -> None:
    read = OptimumFolder.read(optimum(tmp_path), {})
    card = read.fill(Card(), lambda _: None)
    assert (card.posterior, card.clip_log_var) == ("gaussian", (-30, 20))
    assert sorted(card.sizes) == ["h", "w"]


def test_optimum_names_a_point(tmp_path: Path) -> None:
    read = OptimumFolder.read(optimum(tmp_path, names=("latent_sample",)), {})
    card = read.fill(Card(), lambda _: None)
    assert (card.posterior, card.clip_log_var) == ("point", None)


@pytest.mark.parametrize(
    ("graphs", "tensors"),
    [
        ({"names": ("out",)}, {}),  # it has twice the channels that the decoder takes
        ({"draws": True}, {"moments": "moments"}),
        ({"names": ("mu", "logvar")}, {}),
    ],
)
def test_log_variance_of_other_names_is_clipped_too(
    tmp_path: Path, graphs: dict[str, Any], tensors: dict[str, str]
) -> None:
    read = OptimumFolder.read(optimum(tmp_path, **graphs), tensors)
    card = read.fill(Card(tensors=tensors), lambda _: None)
    assert (card.posterior, card.clip_log_var) == ("gaussian", (-30, 20))


def test_optimum_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    (optimum(tmp_path) / "vae_decoder" / "config.json").unlink()
    with pytest.raises(TrainingError, match=r"has no vae_decoder/config.json. Expected"):
        OptimumFolder.read(tmp_path, {})


def test_configs_of_two_models_are_refused(tmp_path: Path) -> None:
    config(optimum(tmp_path) / "vae_decoder", scaling_factor=0.13025)
    with pytest.raises(TrainingError, match=r"says scaling_factor = 0.18215, and .* 0.13025"):
        OptimumFolder.read(tmp_path, {})


def diffusers_folder(folder: Path, *weights: str, **changes: Any) -> Path:
    config(folder, **changes)
    for name in weights:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("weights", "variant"),
    [
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], ""),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], "fp16"),
        (
            [
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model-00001-of-00001.safetensors",
            ],
            "",
        ),
    ],
)
def test_weights_of_diffusers_are_found(tmp_path: Path, weights: list[str], variant: str) -> None:
    (tmp_path / "model_index.json").touch()
    found = DiffusersFolder.find(diffusers_folder(tmp_path / "vae", *weights).parent)
    assert (found.weights.name, found.variant) == (weights[0], variant)
    assert DiffusersFolder.find(tmp_path / "vae") == found


@pytest.mark.parametrize(
    ("weights", "changes", "words"),
    [
        (["diffusion_pytorch_model.bin"], {}, "is a pickle, which can run code"),
        ([], {}, r"has no diffusion_pytorch_model.safetensors \(weights: none\)"),
        (
            [f"diffusion_pytorch_model.{name}.safetensors" for name in ("ema", "fp16")],
            {},
            "weights: diffusion_pytorch_model.ema.safetensors, ",
        ),
        (["a"], {"_class_name": "VQModel"}, "is of VQModel; .*AutoencoderKL.*by --model"),
    ],
)
def test_diffusers_folder_that_cannot_be_taken_is_refused(
    tmp_path: Path, weights: list[str], changes: dict[str, Any], words: str
) -> None:
    diffusers_folder(tmp_path, *weights, **changes)
    with pytest.raises(TrainingError, match=words):
        DiffusersFolder.find(tmp_path)


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"has neither config.json nor vae/config.json"):
        DiffusersFolder.find(tmp_path)
