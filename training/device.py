"""The device and the precision of a run. This module resolves `auto` for this machine."""

from __future__ import annotations

import torch

from latentd.training import threads
from latentd.training.errors import TrainingError


def resolve_device(name: str) -> torch.device:
    """auto, cpu or cuda -> the device. Raises TrainingError if the GPU does not exist.

    This turns TF32 off. By default, cuDNN rounds the inputs of convolutions to TF32's ten bits,
    which changes a likelihood summed over pixels. It also limits torch's threads to the CPUs.
    """
    torch.set_num_threads(threads.default())
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainingError("--device cuda: there is no CUDA device here; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def resolve_precision(name: str, device: torch.device) -> str:
    """auto, float32 or bfloat16 -> float32 or bfloat16. GPUs older than Ampere only emulate
    bfloat16, which is slower."""
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"
