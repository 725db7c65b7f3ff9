"""Thresholds and contributions: which rows are outliers, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from latentd.bundle import Threshold
from latentd.client import Client
from latentd.errors import InvalidArgument
from latentd.models.inference import ServedModel
from latentd.runtime.likelihood import LikelihoodGraph
from tests.support.spatial_bundle import blocks, publish_spatial
from tests.support.toy_bundle import PublishToy

CHOSEN = Threshold(99.0, 8.0)


@pytest.fixture(scope="module")
def server(listener, tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("bundles")
    publish = PublishToy()
    publish(root, "toy", contributions=True, threshold=CHOSEN)
    publish(root, "old")
    publish(root, "point", posterior="point", contributions=True)
    publish_spatial(root, likelihood=True, threshold=CHOSEN)
    return module_servers(root, listener=listener, default_model="toy", max_message_mib=1)


@pytest.fixture(scope="module")
def client(server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def expected(x: np.ndarray) -> np.ndarray:
    """-log p of each element: the toy's logits are x / 255."""
    unit = x / 255
    return np.logaddexp(0, unit) - unit * unit


@pytest.fixture
def x() -> np.ndarray:
    """Rows from black, whose error is 16 log 2 = 11.1, to white, whose error is 5.0."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 20, (6, 4, 4), np.uint8)
    return np.maximum(levels[:, None, None], noise)


def test_model_tells_its_threshold_and_the_shape_of_contributions(client):
    info = client.get_model()
    assert (info.threshold, info.contributions.json) == (CHOSEN, [4, 4])
    assert info.default.contributions == (4, 4)
    old = client.get_model(model="old")
    assert (old.threshold, old.contributions) == (None, None)
    assert "was exported without contributions" in old.unavailable["contributions"]


def check(result, x: np.ndarray, threshold: float | None) -> None:
    """Contributions and outliers of any response."""
    terms = expected(x)
    assert result.contributions.dtype == np.float32
    np.testing.assert_allclose(result.contributions, terms, rtol=1e-5)
    sums = result.contributions.sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums, result.reconstruction_error, rtol=1e-6)
    assert result.threshold == threshold
    if threshold is not None:
        errors = result.reconstruction_error
        assert result.is_outlier.tolist() == (errors > threshold).tolist()
        assert 0 < result.is_outlier.sum() < len(x)


def test_reconstruct_tells_outliers_and_contributions(client, x):
    check(client.reconstruct(x, include_scores=True, include_contributions=True), x, 8.0)
    asked = {"include_scores": True, "include_contributions": True, "threshold": 6.5}
    check(client.reconstruct(x, **asked), x, 6.5)
    check(client.reconstruct(x, **asked, model="toy"), x, 6.5)


def test_score_compares_rows_as_sent_at_the_mean(client, x):
    plain = client.reconstruct(x, include_scores=True)
    for asked, threshold in (({}, 8.0), ({"threshold": 6.5}, 6.5)):
        found = client.score(x, seed=1, include_contributions=True, **asked)
        check(found, x, threshold)
        assert found.reconstruction_error.tolist() == plain.reconstruction_error.tolist()
        assert found.is_outlier.tolist() == (plain.reconstruction_error > threshold).tolist()
    again = client.score(x, seed=1)
    assert again.elbo.tolist() == found.elbo.tolist()
    assert (again.threshold, again.contributions) == (8.0, None)


def test_stream_tells_them_for_each_message(client, x):
    chunks = [x[:5], x[5:]]
    options = {"include_scores": True, "include_contributions": True, "threshold": 9.0}
    first, second = client.stream_reconstruct(chunks, include_x=False, **options)
    assert first.x.size == 0
    check(first, x[:5], 9.0)
    np.testing.assert_allclose(second.contributions, expected(x[5:]), rtol=1e-5)
    assert second.is_outlier.tolist() == [False]


def test_nothing_is_told_that_nobody_asked_for(client, x):
    scored = client.reconstruct(x, include_scores=True, model="old")
    assert (scored.threshold, scored.is_outlier, scored.contributions) == (None, None, None)
    unscored = client.reconstruct(x)
    assert (unscored.threshold, unscored.is_outlier, unscored.contributions) == (None, None, None)
    old = client.score(x, model="old")
    assert (old.threshold, old.reconstruction_error) == (None, None)
    only = client.reconstruct(x, include_contributions=True)
    assert (only.elbo, only.threshold, only.contributions.shape) == (None, None, (6, 4, 4))


def test_contributions_are_not_computed_unasked(client, x, monkeypatch):
    calls = []
    compute = LikelihoodGraph.contributions
    monkeypatch.setattr(
        LikelihoodGraph, "contributions", lambda *args: calls.append(1) or compute(*args)
    )
    rows = []
    run = ServedModel.reconstruct
    monkeypatch.setattr(
        ServedModel, "reconstruct", lambda *args, **more: rows.append(1) or run(*args, **more)
    )
    client.reconstruct(x, include_scores=True)
    client.score(x)
    assert (len(calls), len(rows)) == (0, 2)  # the bundle's threshold costs Score a reconstruction
    client.score(x, model="old")
    assert len(rows) == 2
    client.score(x, include_contributions=True)
    assert (len(calls), len(rows)) == (1, 3)


def test_threshold_of_a_call_needs_none_in_the_bundle(client, x):
    found = client.score(x, model="old", threshold=6.5)
    assert found.is_outlier.tolist() == (found.reconstruction_error > 6.5).tolist()
    assert client.reconstruct(x, model="old", include_scores=True, threshold=0).is_outlier.all()


@pytest.mark.parametrize("method", ["reconstruct", "score", "stream_reconstruct"])
def test_threshold_of_the_model_is_for_rows_of_the_default_size(client, method):
    def call(x: np.ndarray, **asked: float):
        if method == "score":
            return client.score(x, model="spatial", include_contributions=True, **asked)
        asked |= {"include_scores": True, "include_contributions": True}
        if method == "reconstruct":
            return client.reconstruct(x, model="spatial", **asked)
        return next(client.stream_reconstruct([x], model="spatial", **asked))

    assert call(blocks(2, 32, 32, seed=1)).threshold == 8
    other = blocks(2, 16, 24, seed=1)
    found = call(other)
    assert (found.threshold, found.is_outlier) == (None, None)
    assert found.contributions.shape == other.shape
    sums = found.contributions.sum(axis=(1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(sums, found.reconstruction_error, rtol=1e-5)
    assert call(other, threshold=1.0).is_outlier.all()


REFUSED = [
    ("reconstruct", "old", {"include_contributions": True}, "include_contributions", "exported w"),
    ("score", "old", {"include_contributions": True}, "include_contributions", "exported without"),
    ("score", "point", {"include_contributions": True}, "model", "encodes each row to a point"),
    ("reconstruct", "point", {"threshold": 1.0}, "threshold", "encodes each row to a point"),
    ("reconstruct", "toy", {"threshold": 1.0}, "threshold", "none are requested"),
    ("score", "toy", {"threshold": float("nan")}, "threshold", "must be a finite number"),
    ("score", "toy", {"threshold": float("inf")}, "threshold", "must be a finite number"),
]


@pytest.mark.parametrize(("method", "model", "asked", "field", "said"), REFUSED)
def test_what_cannot_be_told_is_refused(client, x, method, model, asked, field, said):
    with pytest.raises(InvalidArgument, match=said) as error:
        getattr(client, method)(x, model=model, **asked)
    assert error.value.field == field


def test_stream_refuses_alike(client, x):
    for asked in ({"include_contributions": True, "model": "old"}, {"threshold": 1.0}):
        with pytest.raises(InvalidArgument, match=r"exported without|none are requested"):
            list(client.stream_reconstruct([x], **asked))


def test_message_holds_the_contributions_of_its_rows(client):
    limit = client.get_model().limits
    most = limit.max_message_bytes // (4 * (16 + 32 + 16) + 64)
    assert most < limit.max_rows
    x = np.zeros((most + 1, 4, 4), np.uint8)
    with pytest.raises(InvalidArgument, match=f"the limit is 1 to {most} per request"):
        client.reconstruct(x, include_contributions=True)
    assert client.reconstruct(x[1:], include_contributions=True).contributions.shape == x[1:].shape


def test_contributions_have_the_floats_that_are_asked_for(client, x):
    found = client.reconstruct(x, include_contributions=True, float_dtype="float16")
    assert found.contributions.dtype == np.float16
    np.testing.assert_allclose(found.contributions, expected(x), rtol=1e-3)
    (streamed,) = client.stream_reconstruct(
        [x], include_contributions=True, float_dtype="bfloat16", include_x=False
    )
    np.testing.assert_allclose(streamed.contributions, expected(x), rtol=1e-2)
