"""A folder that optimum exported: vae_encoder/ and vae_decoder/, each with a graph and a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from latentd.training.adopt import onnx_pair
from latentd.training.adopt.card import Card
from latentd.training.adopt.folders import model_files, vae_config
from latentd.training.adopt.folders.vae_config import VaeConfig
from latentd.training.adopt.onnx_pair import OnnxPair
from latentd.training.errors import TrainingError

_ENCODER: Final = "vae_encoder"
_DECODER: Final = "vae_decoder"
_FILES: Final = ("model.onnx", vae_config.FILE)
_POSTERIORS: Final = {"latent_parameters": "gaussian", "latent_sample": "point"}
"""What the encoder gives, by the name that optimum gives its output."""


@dataclass(frozen=True)
class OptimumFolder:
    """The graphs and the config of a folder."""

    pair: OnnxPair
    config: VaeConfig
    files: Mapping[str, dict[str, Any]]  # name -> {sha256, bytes}

    @classmethod
    def read(cls, folder: Path, tensors: Mapping[str, str]) -> OptimumFolder:
        """Raises TrainingError.

        tensors: names of tensors, as the card has them
        """
        files = [folder / part / name for part in (_ENCODER, _DECODER) for name in _FILES]
        if missing := [str(path.relative_to(folder)) for path in files if not path.is_file()]:
            raise TrainingError(
                f"--optimum {folder} has no {', '.join(missing)}. Expected a folder of "
                "optimum-cli's: vae_encoder and vae_decoder, each with model.onnx and config.json. "
                "Two graphs alone are adopted by --onnx."
            )
        encoder, encoding, decoder, decoding = files
        config, other = VaeConfig.read(encoding), VaeConfig.read(decoding)
        for key in sorted({*config.values, *other.values} & set(vae_config.KEYS)):
            one, two = config.values.get(key), other.values.get(key)
            if one != two:
                raise TrainingError(
                    f"{encoding} says {key} = {one!r}, and {decoding} {two!r}; expected the "
                    "configs of one model."
                )
        pair = onnx_pair.load(encoder, decoder, tensors)
        configs = (encoding, decoding)
        digests = {f"{path.parent.name}/{path.name}": model_files.digest(path) for path in configs}
        return cls(pair, config, pair.files | digests)

    def fill(self, card: Card, report: Callable[[str], None]) -> Card:
        """The card with what the folder says. Raises TrainingError where the two differ.

        report: gets a line about what the config says or leaves open
        """
        free = "".join(axis for axis, length in self._sides if length is None)
        return self.config.fill(card, self._posterior(card), free, report)

    def _posterior(self, card: Card) -> str | None:
        """By what the card cuts out, by the output's name, or by the number of channels."""
        if {"moments", "log_var"} & card.tensors.keys():
            return "gaussian"
        found = _POSTERIORS.get(self.pair.encoder.outputs[0], card.posterior)
        return found or self.pair.facts(card).get("posterior")

    @property
    def _sides(self) -> list[tuple[str, int | None]]:
        """Height and width as the encoder takes them; optimum's graphs are NCHW."""
        return list(zip("hw", self.pair.encoder.dims[2:], strict=False))
