"""Clients see why a version is rejected, but not its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentd import bundle
from latentd.client import Client
from latentd.rpc.fields import without_folders


def test_listed_reason_has_no_paths_above_the_root(start_server, publish_toy, tmp_path):
    linked = tmp_path / "linked"
    publish_toy(tmp_path / "volume")
    linked.symlink_to(tmp_path / "volume")
    damaged = publish_toy(linked)
    (damaged / bundle.DECODER).write_bytes(b"other bytes")
    with Client(start_server(linked).target) as client:
        (refused,) = [model for model in client.list_models() if model.state == "failed"]
    assert "toy/2/decoder.onnx" in refused.reason
    assert str(tmp_path) not in refused.reason
    assert "linked" not in refused.reason
    assert "volume" not in refused.reason


@pytest.mark.parametrize(
    ("root", "reason", "expected"),
    [
        ("models", "models/toy/2 is empty", "toy/2 is empty"),
        ("models", "other-models/toy/2 is empty", "other-models/toy/2 is empty"),
        ("/srv/a b", "/srv/a b/toy/2/x.onnx differs", "toy/2/x.onnx differs"),
        (
            "/srv",
            "It (OSError(13, 'No', '/mnt/v7/toy/x.onnx'))",
            "It (OSError(13, 'No', 'x.onnx'))",
        ),
        ("/srv", "x / 255 inside, 3/4 of it, either/or", "x / 255 inside, 3/4 of it, either/or"),
        ("/srv", "File /opt/lib/python3/site.py line 3", "File site.py line 3"),
    ],
)
def test_other_absolute_paths_are_shortened(root, reason, expected):
    assert without_folders(reason, Path(root)) == expected
