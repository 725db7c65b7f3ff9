"""Starts a run from another run's trained encoder: --encoder-from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor

from latentd.training import checkpoint
from latentd.training.config import Config, flag
from latentd.training.dataset import RowSpec
from latentd.training.errors import TrainingError
from latentd.training.model import encoder_of

_BEST: Final = "best.pt"
_DECISIVE: Final = (
    *("architecture", "latents", "latent_size", "hidden_size", "depth", "blocks", "attention"),
    *("stochastic_layers", "linear_path"),
)
"""Settings that decide what an encoder is and what its outputs mean."""


def encoder(config: Config, spec: RowSpec) -> dict[str, Tensor]:
    """The weights of the encoder that a resolved config starts from. Raises TrainingError if it is
    not one of the same net for the same rows."""
    assert config.encoder_from, "the config names no run"
    path = Path(config.encoder_from)
    saved = checkpoint.load(path / _BEST if path.is_dir() else path)
    if saved.spec != spec:
        raise TrainingError(
            f"--encoder-from {path} was trained on {saved.spec}, and --data {config.data} has "
            f"{spec}. Both runs need the same form."
        )
    for name in _DECISIVE:
        theirs, ours = getattr(saved.config, name), getattr(config, name)
        if theirs != ours:
            raise TrainingError(
                f"--encoder-from {path}: {flag(name)} is {theirs} there and {ours} here. Train "
                "both with the same."
            )
    return dict(encoder_of(saved.model()).state_dict())
