"""The device and precision that `auto` selects."""

from __future__ import annotations

import pytest
import torch

from latentd.training.device import resolve_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "device", "native", "precision"),
    [
        ("auto", CPU, False, "float32"),
        ("auto", CUDA, True, "bfloat16"),
        ("auto", CUDA, False, "float32"),  # Turing and older compute it, but slowly
        ("bfloat16", CUDA, False, "bfloat16"),
        ("float32", CUDA, True, "float32"),
    ],
)
def test_auto_precision_is_bfloat16_only_when_the_gpu_supports_it(
    monkeypatch: pytest.MonkeyPatch, name: str, device: torch.device, native: bool, precision: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision(name, device) == precision


def test_float32_convolutions_are_not_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    resolve_device("auto")
    assert torch.backends.cudnn.allow_tf32 is False
