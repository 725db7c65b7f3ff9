"""A manifest with one changed value is rejected, or served and reported by GetModel."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from latentd import bundle, codec
from latentd.bundle import Manifest
from latentd.client import Client
from latentd.errors import BundleError
from latentd.pb import vae_pb2 as pb
from tests.support.spatial_bundle import publish_spatial

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 5, 16, 255, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-320, 1e30, 1e308, -1e308),
    *(
        "",
        "x",
        "5",
        "vae",
        "ae",
        "uint8",
        "float32",
        "vector",
        "point",
        "h/8",
        "\ud800",
        "\0",
        "é",
        "x" * 9_999,
    ),
    *([], [0], [1, 2], [0, 255], [-1, 1], [16], [4, 4, 1], ["0", "255"], [None, None], [[1], [2]]),
    *({}, {"rows": -1}, {"a": {"b": [1, 2, {"c": None}]}}, {"rows": 1, "levels": [0, 100]}),
    *("2026-11-27", "2026-11-27T20:00:00Z", "0" * 64),
]


def keys(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a document."""
    if path:
        yield path
    if isinstance(document, dict | list):
        names = document if isinstance(document, dict) else range(len(document))
        for name in names:
            yield from keys(document[name], (*path, name))


def mutants(good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for path in keys(good):
        for value in VALUES:
            document = copy.deepcopy(good)
            inner = document
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = value
            yield f"{path} is {value!r}", json.dumps(document).encode()


def refusal(data: bytes) -> str:
    """Why this manifest is invalid; empty: it is valid."""
    try:
        Manifest.from_json(data)
    except BundleError as error:
        return str(error)
    return ""


def judged(good: dict[str, Any]) -> tuple[int, list[tuple[str, bytes]]]:
    """How many manifests were tried, and those that are valid."""
    tried = {what: (data, refusal(data)) for what, data in mutants(good)}
    for what, (_, message) in tried.items():
        assert message.encode().startswith(b"manifest.json") or not message, what
    return len(tried), [(what, data) for what, (data, message) in tried.items() if not message]


@pytest.mark.parametrize("most", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_accepted_manifests_can_be_served(root, publish, server, stub, most, record_property):
    path = publish(root, levels=101)
    good = json.loads((path / bundle.MANIFEST).read_text())
    scores = {"rows": 8, "levels": [0, 100]} | {name: [0.5, 1] for name in bundle.SCORES}
    good |= {"training_scores": scores, "training": {"config": {"rate": 0.5}}}
    tried, accepted = judged(good)
    picked = random.Random(8).sample(accepted, min(most, len(accepted)))
    served = 0
    for what, data in picked:
        (path / bundle.MANIFEST).write_bytes(data)
        server.scan()
        stub.ListModels(pb.ListModelsRequest())
        described = stub.GetModel(pb.GetModelRequest())
        served += described.served_by.version == 2
        x = codec.to_rows(np.full((2, 4, 4), described.x_min, np.uint8))
        wants_scores = "score" not in described.unavailable
        answer = stub.Reconstruct(pb.ReconstructRequest(x=x, include_scores=wants_scores))
        for name in ("kl", "elbo", "reconstruction_error"):
            found = getattr(answer, name)
            assert len(found) == 2 * wants_scores
            assert np.isfinite(found).all(), what
    figures = f"{tried} manifests: {len(accepted)} accepted, {served} of {len(picked)} served"
    record_property("figures", figures)
    assert served > 0.8 * len(picked)


@pytest.mark.parametrize("most", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_accepted_manifests_with_free_axes_can_be_served(
    tmp_path, start_server, most, record_property
):
    for _ in range(2):
        path = publish_spatial(tmp_path, likelihood=True)
    good = json.loads((path / bundle.MANIFEST).read_text())
    tile = {"size": {"h": 64, "w": 64}, "overlap": {"h": 16, "w": 16}, "exact": True}
    good |= {"tiles": dict.fromkeys(("encoder", "decoder"), tile | {"max_abs_difference": 0.0})}
    tried, accepted = judged(good)
    picked = random.Random(8).sample(accepted, min(most, len(accepted)))
    served = 0
    server = start_server(tmp_path, poll_seconds=0, keep_versions=1, max_batch_latency_ms=1)
    with Client(server.target) as client:
        for what, data in picked:
            (path / bundle.MANIFEST).write_bytes(data)
            server.scan()
            client.list_models()
            info = client.get_model()
            served += info.served_by.version == 2
            for shapes in (info.default, info.smallest):
                x = np.full((2, *shapes.x.shape), info.x.range[0], shapes.x.dtype)
                scores = "score" not in info.unavailable
                answer = client.reconstruct(x, include_scores=scores)
                assert answer.x.shape == x.shape, what
                assert (answer.elbo is not None) == scores, what
    figures = f"{tried} manifests: {len(accepted)} accepted, {served} of {len(picked)} served"
    record_property("figures", figures)
    assert served > 0.8 * len(picked)
