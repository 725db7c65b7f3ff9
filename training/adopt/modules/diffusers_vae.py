"""An autoencoder of diffusers, loaded by its own class. Only that route imports this module."""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

import torch

from latentd.training.adopt.folders.diffusers import DiffusersFolder
from latentd.training.errors import TrainingError

_OFFLINE: Final = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
"""Variables of diffusers' own dependency, which reads them when it is imported. A user's own value
is kept."""
_REASONS: Final = ("missing_keys", "unexpected_keys", "mismatched_keys")


def load(folder: DiffusersFolder) -> Any:
    """The autoencoder, in float32 and for inference. Raises TrainingError."""
    for name in _OFFLINE:
        os.environ.setdefault(name, "1")
    import diffusers

    kind = getattr(diffusers, folder.config.class_name)
    try:
        with warnings.catch_warnings():  # about diffusers' own code, not the owner's
            warnings.simplefilter("ignore", FutureWarning)
            vae, found = kind.from_pretrained(
                folder.folder,
                variant=folder.variant or None,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,  # config's force_upcast asks for no more
                output_loading_info=True,
            )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(f"diffusers cannot load {folder.folder}: {error}") from None
    for reason in _REASONS:
        if keys := list(map(str, found[reason])):
            raise TrainingError(
                f"{folder.weights} does not fit {folder.config.path}: {reason.replace('_', ' ')} "
                f"{', '.join(keys[:3])}, {len(keys)} in all. Save the model again with "
                "save_pretrained."
            )
    vae.disable_tiling()
    vae.disable_slicing()
    return vae.eval().requires_grad_(False)
