"""A server of models of several kinds, its two protocols, and both listeners."""

from __future__ import annotations

import grpc
import pytest

from latentd.outliers import Threshold
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.open_inference import OpenInference
from tests.support.spatial_bundle import publish_spatial
from tests.support.text_bundle import publish_text
from tests.support.tiled_bundle import EXACT


@pytest.fixture(scope="module", params=["core", "aio"])
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def many_bundles(tmp_path_factory, publish_toy):
    """toy, with contributions; strict, with a threshold; point, without prior; spatial; text."""
    root = tmp_path_factory.mktemp("bundles")
    publish_toy(root, contributions=True)
    publish_toy(root, "strict", threshold=Threshold(percentile=99.0, reconstruction_error=3.5))
    publish_toy(root, "point", posterior="point")
    publish_spatial(root, tiles={"encoder": EXACT, "decoder": EXACT})
    publish_text(root)
    return root


@pytest.fixture(scope="module")
def server(listener, many_bundles, module_servers):
    return module_servers(many_bundles, listener=listener, default_model="toy", access_log="all")


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture
def oip(channel) -> OpenInference:
    return OpenInference(channel)


@pytest.fixture
def vae(channel) -> VaeServiceStub:
    return VaeServiceStub(channel)
