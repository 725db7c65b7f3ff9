"""What the toy bundle answers: its decoder inverts its encoder. Each client checks it."""

from __future__ import annotations

import numpy as np

X = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
MEAN = X.reshape(4, 16).astype(np.float32) / np.float32(255)
SEED = np.full((3, 1), 7, np.uint64)
INDEX = np.array([[0], [1], [2**64 - 1]], np.uint64)
METADATA = {
    "toy:encode": ({"x"}, {"mean", "log_var"}),
    "toy:decode": ({"z"}, {"x"}),
    "toy:reconstruct": ({"x"}, {"x", "reconstruction_error", "kl", "elbo"}),
    "toy:score": ({"x"}, {"elbo", "log_likelihood", "kl"}),
    "toy:sample": ({"seed", "index"}, {"x"}),
    "toy": ({"z"}, {"x"}),
}
"""The names of the inputs and outputs of each model."""


def equal(found: object, expected: object) -> None:
    np.testing.assert_array_equal(found, expected)
