"""Texts over the wire from another language: Node, with @grpc/grpc-js and the .proto file alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from latentd.client import Client, Texts
from tests.support.server import server_starter
from tests.support.text_bundle import publish_text

SCRIPT = Path(__file__).with_name("texts_from_node.cjs")
PROTO = Path(__file__).parents[2] / "protos/vae/v1/vae.proto"
PACKAGES = "@grpc/grpc-js", "@grpc/proto-loader"


def node_environment() -> dict[str, str]:
    """The environment in which node finds packages that are installed globally."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    found = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True)
    folders = [os.environ.get("NODE_PATH", ""), found.stdout.strip()]
    environment = os.environ | {"NODE_PATH": os.pathsep.join(filter(None, folders))}
    script = "".join(f"require.resolve('{name}');" for name in PACKAGES)
    tried = subprocess.run(["node", "-e", script], capture_output=True, env=environment)
    if tried.returncode:
        pytest.skip(f"node has no {' '.join(PACKAGES)}: npm install --global {' '.join(PACKAGES)}")
    return environment


def test_node_sends_and_gets_texts(tmp_path: Path) -> None:
    environment = node_environment()
    publish_text(tmp_path)
    with server_starter() as start:
        target = start(tmp_path).target
        run = subprocess.run(
            ["node", str(SCRIPT), target, str(PROTO)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert not run.stderr
        found = json.loads(run.stdout)
        with Client(target) as client:
            x = Texts(["bc", "é", ""])
            sampled = client.sample(9, seed=2**64 - 1, draw_x=True).texts
            rebuilt = client.reconstruct(x, include_scores=True)
            bound = client.score(x, draws=4, seed=1).log_likelihood
    assert (found["most_bytes"], found["seed"]) == (7, str(2**64 - 1))
    assert (found["sampled"], found["rebuilt"]) == (sampled, rebuilt.texts)
    np.testing.assert_allclose(found["elbo"], rebuilt.elbo, rtol=1e-5)
    np.testing.assert_allclose(found["bound"], bound, rtol=1e-5)
    assert "x.text.texts[1]: has 13 bytes in UTF-8; the limit is 7" in found["refused"]
    assert [error["row"] for error in found["bad"]] == [1]
    assert found["streamed"] == [rebuilt.texts[:2], rebuilt.texts[2:]]
