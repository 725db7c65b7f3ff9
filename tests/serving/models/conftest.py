"""A server that scans for versions when the test calls `scan`, and versions to publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from latentd import bundle, codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub


class Stub(VaeServiceStub):
    """A stub that reports which version serves its calls."""

    def answering(self, **which: object) -> int:
        """The version that serves, from the response's field and from its values."""
        z = codec.to_tensor(np.ones((1, 16), np.float32))
        response = self.Decode(pb.DecodeRequest(z=z, **which))
        levels = set(codec.from_rows(response.x).ravel().tolist())
        assert levels == {100 + response.served_by.version}, "not the graph that was named"
        return response.served_by.version

    def failed(self) -> dict[int, str]:
        """The rejected versions, with the reason."""
        models = self.ListModels(pb.ListModelsRequest()).models
        return {m.version.version: m.reason for m in models if m.state == pb.MODEL_STATE_FAILED}

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Call until `done`; the test's timeout limits it."""
        while not done():
            self.answering()


@pytest.fixture
def open_stub(request) -> Callable[..., Stub]:
    """A stub of a server; the channel is closed when the test ends."""

    def open_(server) -> Stub:
        channel = grpc.insecure_channel(server.target)
        request.addfinalizer(channel.close)
        return Stub(channel)

    return open_


@pytest.fixture
def publish(publish_toy) -> Callable[..., Path]:
    """Publish the toy's next version n, with 100 + n levels."""

    def publish(root: Path, **chosen: object) -> Path:
        versions = bundle.versions(root / str(chosen.get("model", "toy")))
        return publish_toy(root, **{"levels": 101 + max(versions, default=0)} | chosen)

    return publish


@pytest.fixture
def root(tmp_path, publish) -> Path:
    """A root with the toy's version 1."""
    publish(tmp_path)
    return tmp_path


@pytest.fixture
def server(root, start_server):
    """Serves `root`; scans when the test calls `scan`."""
    return start_server(root, poll_seconds=0, keep_versions=1, max_batch_latency_ms=1)


@pytest.fixture
def stub(server, open_stub) -> Stub:
    return open_stub(server)
