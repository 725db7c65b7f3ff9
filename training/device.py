"""Where a run computes, and in which arithmetic: what `auto` comes to on this machine."""

from __future__ import annotations

import torch

from latentd.training import threads
from latentd.training.errors import TrainingError


def resolve_device(name: str) -> torch.device:
    """auto, cpu or cuda -> the device. Raises TrainingError for a GPU that is not there.

    float32 means float32 from here on: of itself cuDNN rounds what it convolves to TF32's ten bits,
    and a likelihood summed over pixels shows it. And torch has no more threads than there are CPUs.
    """
    torch.set_num_threads(threads.default())
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainingError("--device cuda: there is no CUDA device here; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def resolve_precision(name: str, device: torch.device) -> str:
    """auto, float32 or bfloat16 -> one of the two. GPUs older than Ampere only imitate bfloat16,
    and are slower for it."""
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"
