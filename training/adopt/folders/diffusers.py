"""A folder that diffusers saved with save_pretrained: an autoencoder, or a pipeline that has one.

Its files are found and its config is read without diffusers. `modules.diffusers_vae` loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from latentd.training.adopt.card import Card
from latentd.training.adopt.folders import model_files, vae_config
from latentd.training.adopt.folders.vae_config import VaeConfig
from latentd.training.errors import TrainingError

CLASSES: Final = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderOobleck")
_WEIGHTS: Final = "diffusion_pytorch_model"
_PIPELINE: Final = "model_index.json"
_PART: Final = "vae"
_SAFE: Final = ".safetensors"


@dataclass(frozen=True)
class DiffusersFolder:
    """The files of an autoencoder.

    variant: of the weights, as in diffusion_pytorch_model.fp16.safetensors; "" is the usual one
    """

    config: VaeConfig
    weights: Path
    variant: str

    @classmethod
    def find(cls, folder: Path) -> DiffusersFolder:
        """Find them; nothing is loaded. Raises TrainingError."""
        if (folder / _PIPELINE).is_file() or not (folder / vae_config.FILE).exists():
            folder = folder / _PART
        if not (folder / vae_config.FILE).is_file():
            raise TrainingError(
                f"--diffusers {folder.parent} has neither {vae_config.FILE} nor "
                f"{_PART}/{vae_config.FILE}; expected a folder that save_pretrained wrote, of an "
                "autoencoder or of a pipeline that has one."
            )
        config = VaeConfig.read(folder / vae_config.FILE)
        if config.class_name not in CLASSES:
            raise TrainingError(
                f"{config.path} is of {config.class_name}; --diffusers takes {', '.join(CLASSES)}. "
                "Adopt another class by --model: a function that returns it, with encode(x) and "
                "decode(z)."
            )
        weights, variant = _weights(folder)
        return cls(config, weights, variant)

    @property
    def folder(self) -> Path:
        """Of the autoencoder itself."""
        return self.config.path.parent

    def files(self) -> dict[str, dict[str, Any]]:
        """The digests of the config and the weights, by name."""
        pattern = f"{_WEIGHTS}*{_SAFE}" if self.weights.suffix == ".json" else self.weights.name
        paths = [self.config.path, *sorted(self.folder.glob(pattern))]
        return {path.name: model_files.digest(path) for path in paths}

    def fill(self, card: Card, report: Callable[[str], None]) -> Card:
        """The card with what the folder says. Raises TrainingError where the two differ."""
        report(f"folder: {self.folder}, {self.weights.name}")
        return self.config.fill(card, self.config.posterior, self.config.axes, report)


def _weights(folder: Path) -> tuple[Path, str]:
    """The file of weights, or the index of several, and its variant."""
    usual = folder / f"{_WEIGHTS}{_SAFE}"
    found = sorted(folder.glob(f"{_WEIGHTS}*{_SAFE}")) + sorted(folder.glob(f"{_WEIGHTS}*.index*"))
    if usual.is_file():
        return usual, ""
    indices = [path for path in found if path.name.endswith(f"{_SAFE}.index.json")]
    if usual.with_name(f"{usual.name}.index.json") in indices:
        return usual.with_name(f"{usual.name}.index.json"), ""
    whole = [path for path in found if path.name.count(".") == 2 and path.suffix == _SAFE]
    if len(whole) == 1:
        return whole[0], whole[0].name.split(".")[1]
    if pickles := sorted(folder.glob("*.bin")):
        raise TrainingError(
            f"{pickles[0]} is a pickle, which can run code when it is read, so it is not read. "
            "If you trust it, load it with diffusers and save it again: "
            "save_pretrained(folder, safe_serialization=True)."
        )
    names = ", ".join(path.name for path in found) or "none"
    raise TrainingError(
        f"{folder} has no {usual.name} (weights: {names}); expected what save_pretrained writes."
    )
