"""The Frechet distance between two sets of features, each modeled as a normal distribution.

Dowson & Landau, 1982. On a classifier's features, Heusel et al., 2017, arXiv:1706.08500, call it
FID. This classifier is trained on the same data. So the numbers compare models on one data set, but
not with numbers published for another classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), for features (rows, values), at least two rows.

    The root has the same trace as the symmetric (B^1/2 A B^1/2)^1/2, so eigenvalues suffice.
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    root = _root(_covariance(b))
    # Rounding can make an eigenvalue of 0 slightly negative.
    common = torch.linalg.eigvalsh(root @ _covariance(a) @ root).clamp_min(0).sqrt().sum()
    spread = _covariance(a).trace() + _covariance(b).trace() - 2 * common
    return max(0.0, float(shift + spread))


def _covariance(rows: Tensor) -> Tensor:
    covariance: Tensor = torch.cov(rows.T)
    return covariance.reshape(rows.shape[1], rows.shape[1])


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
