"""Exported graphs can be recorded as CUDA graphs: ONNX Runtime accepts a graph for that only if
all of it runs on the GPU. tests/serving/runtime/test_cuda.py has the tests of recordings."""

from __future__ import annotations

import pytest

from latentd.runtime.cuda import CudaStream
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import CUDA, Provider, unavailable_reason
from latentd.training import networks, onnx_graphs
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.fp16 import to_half
from latentd.training.model import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(unavailable_reason()), reason=f"no GPU: {unavailable_reason()}"),
]
LATENT = 4


@pytest.mark.parametrize(
    ("net", "shape", "likelihood", "precision"),
    [
        ("mlp", (28, 28), "gaussian", "float32"),
        ("gated", (7,), "bernoulli", "float16"),
        ("resnet", (32, 48, 3), "discretized-logistic", "float32"),
        ("resnet", (28, 28), "gaussian", "float16"),
    ],
)
def test_exported_graph_runs_entirely_on_the_gpu(net, shape, likelihood, precision):
    config = Config(architecture=net, likelihood=likelihood, latent_size=LATENT, hidden_size=8)
    model = build(networks.resolve_architecture(config, shape), RowSpec(shape, "uint8")).eval()
    exported = to_half(model) if precision == "float16" else model
    engine, stream = SessionFactory(Provider("cuda")), CudaStream()
    for graph in (onnx_graphs.encoder(exported, "m"), onnx_graphs.decoder(exported, "m")):
        session = engine._session(graph, 1, cuda_graph=True, stream=stream.address)
        assert session.get_providers()[0] == CUDA
        del session
    stream.close()
