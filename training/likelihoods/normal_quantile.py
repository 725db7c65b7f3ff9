"""The inverse of the normal distribution's function, from operators that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

# Giles (2010), "Approximating the erfinv function": relative error near 3e-7, in float32.
_CENTER: Final = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_TAIL: Final = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def normal_quantile(uniform: Tensor) -> Tensor:
    """The inverse of the normal distribution's function, of numbers between 0 and 1."""
    y = 2 * uniform - 1
    w = -(4 * uniform * (1 - uniform)).log()
    center, tail = _polynomial(_CENTER, w - 2.5), _polynomial(_TAIL, w.clamp(min=5).sqrt() - 3)
    return math.sqrt(2) * y * torch.where(w < 5, center, tail)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    result = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        result = result * x + coefficient
    return result
