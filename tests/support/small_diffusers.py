"""Small autoencoders of diffusers, trained for a moment on photographs."""

from __future__ import annotations

import os
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

SIDE: Final = 32
_STEPS: Final = 100
_ROWS: Final = 4


def kl_autoencoder() -> Any:
    """Of three sizes: a latent of 4 x h/4 x w/4, with attention, scale and shift."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return _trained(
        AutoencoderKL(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=8,
            sample_size=64,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    )


def tiny_autoencoder() -> Any:
    """A point of 4 x h/4 x w/4."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    return _trained(
        AutoencoderTiny(
            encoder_block_out_channels=(16,) * 3,
            decoder_block_out_channels=(16,) * 3,
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    )


def audio_autoencoder() -> Any:
    """Stereo, 8,000 samples a second; a latent of 8 x t/32. It is not trained."""
    from diffusers import AutoencoderOobleck

    torch.manual_seed(0)
    net: nn.Module = AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=[2, 4, 4],
        channel_multiples=[1, 2, 2],
        decoder_channels=16,
        decoder_input_channels=8,
        sampling_rate=8000,
    )
    return net.eval().requires_grad_(False)


def of_net(x: np.ndarray) -> Tensor:
    """Bytes of clients as diffusers' image processor gives them to a net: NCHW, -1 to 1."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 255 * 2 - 1)


def to_bytes(x: Tensor) -> np.ndarray:
    """As diffusers' image processor makes a picture of what a decoder gives."""
    unit = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    pixels: np.ndarray = (unit * 255).round().astype(np.uint8)
    return pixels


def _trained(net: nn.Module) -> nn.Module:
    random = np.random.default_rng(0)
    pictures = load_sample_images().images
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(_STEPS):
        rows = []
        for _ in range(_ROWS):
            picture = pictures[random.integers(len(pictures))]
            step = random.integers(1, 8)  # of every so many pixels one
            part = picture[random.integers(step) :: step, random.integers(step) :: step]
            top, left = (random.integers(n - SIDE + 1) for n in part.shape[:2])
            rows.append(part[top : top + SIDE, left : left + SIDE])
        x = of_net(np.stack(rows))
        encoded = net.encode(x)
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        loss = nn.functional.mse_loss(net.decode(z).sample, x)
        if not hasattr(encoded, "latents"):
            loss = loss + 1e-4 * encoded.latent_dist.kl().mean() / z[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval().requires_grad_(False)
