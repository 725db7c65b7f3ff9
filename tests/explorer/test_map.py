"""The explorer of a bundle that keeps a map of its training rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.explorer import current, name_of, picture, visit
from tests.support.latent_maps import ROWS, toy_map
from tests.support.server import StartServer
from tests.support.toy_bundle import PublishToy


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, publish_toy: PublishToy, module_servers: StartServer
) -> str:
    root: Path = tmp_path_factory.mktemp("bundles")
    publish_toy(root, map_npz=toy_map().to_npz())
    server = module_servers(root, http_port=0)
    return f"http://127.0.0.1:{server.server.http_port}/explore/toy"


def test_address_names_a_row_of_the_map(tab, site):
    visit(tab, f"{site}#here=row:3")
    np.testing.assert_array_equal(picture(tab), np.full((4, 4), 120))


def test_pointer_moves_in_the_plane_of_the_principal_components(tab, site):
    visit(tab, f"{site}#view=map")
    assert tab.get_by_text(f"{ROWS} training rows.").is_visible()
    assert tab.locator(".legend").inner_text().split() == ["dark", "é"]
    box = tab.locator("#map canvas").bounding_box()
    tab.mouse.move(box["x"] + 9, box["y"] + 9)
    tab.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5)
    z, expected = current(tab), toy_map()
    along = (z - expected.center) @ expected.components.T
    np.testing.assert_allclose(expected.center + along @ expected.components, z, atol=1e-5)
    # The margin is the same at both ends of the rows.
    ends = expected.position[:, 0].min(), expected.position[:, 0].max()
    assert along[0] == pytest.approx(np.interp(0.7, [0.06 / 1.12, 1.06 / 1.12], ends), abs=0.02)


def test_rows_are_colored_by_what_is_chosen(tab, site):
    visit(tab, f"{site}#view=map")
    tab.get_by_label("Color by").select_option("error")
    assert tab.locator(".legend").inner_text() == "blue 10.0 nats, red 20.0 nats"
    tab.wait_for_url("**color=error*")


def test_labels_are_text_and_those_left_out_are_counted(tab, start_server, tmp_path, publish_toy):
    classes = np.array([f"<img src=x onerror=alert({i})>" for i in range(200)])
    label = np.arange(200, dtype=np.int32)
    rows = {
        name: np.resize(value, (200, *value.shape[1:]))
        for name in ("mean", "position", "reconstruction_error", "kl")
        if (value := getattr(toy_map(), name)) is not None
    }
    latent_map = dataclasses.replace(
        toy_map(), classes=classes, label=label, sprites=None, sprite_shape=None, **rows
    )
    publish_toy(tmp_path, map_npz=latent_map.to_npz())
    server = start_server(tmp_path, http_port=0)
    visit(tab, f"http://127.0.0.1:{server.server.http_port}/explore/toy#view=map")
    legend = tab.locator(".legend")
    assert legend.locator("img").count() == 0
    assert legend.inner_text().endswith("and 170 more")


def test_active_units_come_by_kl_and_collapsed_ones_are_folded_away(tab, site):
    visit(tab, f"{site}#view=units")
    shown = tab.locator(".unit").evaluate_all(
        "units => units.map(unit => Number(unit.dataset.unit))"
    )
    assert shown == [14, 12, 10, 8, 6, 4, 2, 0]
    assert "KL 2.80 nats" in tab.locator(".unit").first.inner_text()
    folded = tab.locator("details")
    assert folded.locator("summary").inner_text() == "8 collapsed units"
    assert not folded.locator("p").is_visible()
    folded.locator("summary").click()
    assert "z[15], z[13]" in folded.locator("p").inner_text()


def test_own_image_has_its_nearest_rows_and_its_place(tab, site, tmp_path):
    Image.fromarray(np.full((4, 4), 83, np.uint8)).save(tmp_path / "own.png")
    visit(tab, f"{site}#view=own")
    tab.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    first = tab.locator("#view .strip button").first
    first.wait_for()
    assert first.get_attribute("title").startswith("training row 2, label dark, distance ")
    thumbnail = picture(tab, "#view .strip button:first-child img")
    assert abs(int(thumbnail[2, 2, 0]) - 80) <= 12
    first.click()
    tab.wait_for_url("**here=row%3A2*")
    assert current(tab)[0] == np.float32(80 / 255)
    tab.get_by_role("button", name="Show where it lies").click()
    tab.locator("#tab-map[aria-selected=true]").wait_for()


def test_units_can_be_the_maps_axes(tab, site):
    here = np.linspace(0, 1, 16, dtype=np.float32)
    visit(tab, f"{site}#view=map&axes=units&here={name_of(here)}")
    tab.locator("#map canvas").focus()
    tab.keyboard.press("ArrowRight")
    moved = np.flatnonzero(current(tab) != here)
    assert moved.tolist() == [14]  # the unit of most KL
