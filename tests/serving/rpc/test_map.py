"""GetMap of a real server: what the bundle keeps of its training rows, read from disk each time."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentd import bundle
from latentd.client import AsyncClient, Client
from latentd.client.results import LatentMap as ClientMap
from latentd.errors import InvalidArgument, Unavailable
from tests.support.latent_maps import ROWS, toy_map


@pytest.fixture
def root(tmp_path: Path, publish_toy: Any) -> Path:
    publish_toy(tmp_path, map_npz=toy_map().to_npz())
    return tmp_path


def test_map_is_what_the_bundle_has(root: Path, start_server: Any, listener: str) -> None:
    expected = toy_map()
    with Client(start_server(root, listener=listener).target) as client:
        assert "map" not in client.get_model().unavailable
        found = client.get_map()
        assert found.served_by == client.get_model().served_by
    for name in ("mean", "components", "center", "position", "active", "unit_kl", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.reconstruction_error, expected.reconstruction_error)
    np.testing.assert_array_equal(found.kl, expected.kl)
    assert (found.explained_variance, found.classes) == ((1.0, 0.0), ["dark", "é"])
    assert (found.x, found.texts) == (None, [])
    assert found.thumbnails.shape == (ROWS, 4, 4, 3)
    grays = found.thumbnails[:, 2, 2, 0].astype(int)
    assert np.abs(grays - 40 * np.arange(ROWS)).max() <= 12
    np.testing.assert_allclose(found.at(found.position), expected.mean, atol=1e-6)
    assert found.at((0, 0)).shape == (16,)
    assert repr(found).startswith("LatentMap(7 rows with classes, reconstruction_error, sprites")


def test_awaited_map_is_the_same(root: Path, start_server: Any) -> None:
    target = start_server(root).target

    async def call() -> ClientMap:
        async with AsyncClient(target) as client:
            return await client.get_map()

    np.testing.assert_array_equal(asyncio.run(call()).mean, toy_map().mean)


def test_a_model_without_a_map_says_why(server: Any) -> None:
    reason = "toy keeps no training rows: its bundle was made without --map-rows"
    with Client(server.target) as client:
        with pytest.raises(InvalidArgument, match=f"model: {reason}. Export it again with"):
            client.get_map()  # the server says it
        pinned = client.with_version(client.get_model().served_by)
        with pytest.raises(InvalidArgument, match=f"model: {reason}. Export it again with"):
            pinned.get_map()  # the client says it before it sends anything


def test_a_map_that_was_changed_or_removed_is_not_sent(root: Path, start_server: Any) -> None:
    server, file = start_server(root, poll_seconds=3600), root / "toy" / "1" / bundle.MAP
    whole = file.read_bytes()
    with Client(server.target, attempts=1) as client:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Unavailable, match=r"map\.npz is not the file that was published"):
            client.get_map()
        file.write_bytes(whole + b"more")
        with pytest.raises(Unavailable, match=r"map\.npz cannot be read: it has"):
            client.get_map()
        file.unlink()
        with pytest.raises(Unavailable, match=r"toy version 1: map\.npz is missing"):
            client.get_map()
        assert len(client.sample(2)) == 2
        file.write_bytes(whole)
        assert len(client.get_map()) == ROWS


def test_a_map_larger_than_a_message_is_refused(
    tmp_path: Path, publish_toy: Any, start_server: Any
) -> None:
    many = np.array(["a" * 40_000] * 2 + [""] * 10)  # 4 bytes a character, 12 names
    publish_toy(tmp_path, map_npz=dataclasses.replace(toy_map(), classes=many).to_npz())
    target = start_server(tmp_path, max_message_mib=1).target
    larger = r"its map of 1,92.,... bytes is larger than a message; the limit is 1,048,576 bytes"
    with Client(target) as client, pytest.raises(InvalidArgument, match=larger):
        client.get_map()


@pytest.mark.parametrize("trial", ["false", "true"])
def test_a_version_whose_map_is_of_another_model_is_rejected(
    root: Path, publish_toy: Any, start_server: Any, trial: str
) -> None:
    server = start_server(root, load_trial=trial)
    wrong = dataclasses.replace(toy_map(), center=np.zeros(3, np.float32))
    publish_toy(root, map_npz=wrong.to_npz())
    server.scan()
    with Client(server.target) as client:
        first, second = client.list_models()
        assert (first.state, second.state) == ("ready", "failed")
        assert "center has dtype float32 and shape (3,); expected float32" in second.reason
        assert client.get_map().served_by.version == 1
