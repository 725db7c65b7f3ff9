"""The Frechet distance between two sets of features, each taken for a normal distribution.

Dowson & Landau, 1982; on a classifier's features it is what Heusel et al., 2017, arXiv:1706.08500,
call FID. Ours are features of a classifier trained on the same data, so the numbers compare models
on one data set, never with numbers published for another classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), for features (rows, values), two rows or more.

    The trace of the root is that of the symmetric (B^1/2 A B^1/2)^1/2, so eigenvalues suffice.
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    root = _root(_covariance(b))
    # Rounding makes eigenvalues of 0 a little negative.
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
