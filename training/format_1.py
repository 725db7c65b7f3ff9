"""Write the graphs of likelihoods that serving has for bundles of format 1, which have none.

python -m latentd.training.format_1 serving/models/format_1
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from latentd.training import likelihoods, onnx_graphs
from latentd.training.config import Config

NAMES: Final = ("bernoulli", "gaussian", "discretized-logistic")
"""All likelihoods that format 1 knows."""


def graph(name: str) -> bytes:
    """The graph of one of NAMES."""
    return onnx_graphs.flat_likelihood(likelihoods.of(Config(likelihood=name)), name)


if __name__ == "__main__":
    for name in NAMES:
        (Path(sys.argv[1]) / f"{name}.onnx").write_bytes(graph(name))
