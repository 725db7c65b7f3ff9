"""The explorer's views, in a real browser, beside a real server.

The toy decodes z to x = round(255 z): a picture's pixels tell which point was decoded.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd.client import Client
from tests.support.explorer import address_of, current, latent, name_of, picture, visit, wait_shown
from tests.support.server import RunningServer, StartServer
from tests.support.spatial_bundle import publish_spatial
from tests.support.table_bundle import publish_table
from tests.support.text_bundle import publish_text
from tests.support.toy_bundle import PublishToy

Z = np.linspace(0, 1, 16, dtype=np.float32)


def decoded(z: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(255 * z.clip(0, 1)).astype(np.uint8).reshape(4, 4)
    return pixels


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, publish_toy: PublishToy) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    publish_toy(root, contributions=True)
    publish_spatial(root)
    publish_table(root)
    publish_text(root)
    return root


@pytest.fixture(scope="module")
def server(bundles: Path, module_servers: StartServer) -> RunningServer:
    return module_servers(bundles, default_model="toy")


@pytest.fixture(scope="module")
def site(server: RunningServer, module_explore: Any) -> str:
    address: str = module_explore(server.target)
    return address


def test_address_names_the_point_that_is_decoded(tab, site):
    visit(tab, f"{site}toy#here={name_of(Z)}")
    np.testing.assert_array_equal(picture(tab), decoded(Z))


def test_without_a_name_the_default_model_is_shown(tab, site):
    visit(tab, site)
    assert tab.locator("#model").input_value() == "toy"


def test_same_address_gives_the_same_bytes(browser, tab, site):
    visit(tab, f"{site}toy#here=7:3:0.8")
    first = tab.locator("#picture img").get_attribute("src")
    other = browser.new_context().new_page()
    visit(other, f"{site}toy#here=7:3:0.8")
    assert other.locator("#picture img").get_attribute("src") == first
    other.context.close()


def test_pointer_decodes_what_lies_under_it(tab, site):
    visit(tab, f"{site}toy#view=map&axes=units&here={name_of(Z)}")
    box = tab.locator("#map canvas").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.45)
    z = current(tab)
    np.testing.assert_array_equal(z[2:], Z[2:])
    assert 0 < z[0] < 1
    assert 0 < z[1] < 1
    np.testing.assert_array_equal(picture(tab), decoded(z))
    tab.wait_for_url(lambda url: latent(address_of(tab)["here"]).tolist() == z.tolist())


def test_arrow_keys_move_the_point(tab, site):
    visit(tab, f"{site}toy#view=map&axes=units&here={name_of(Z)}")
    tab.locator("#map canvas").focus()
    tab.keyboard.press("ArrowRight")
    z = current(tab)
    assert z[0] > Z[0]
    np.testing.assert_array_equal(z[1:], Z[1:])


def test_only_the_newest_of_many_moves_is_decoded(tab, site):
    visit(tab, f"{site}toy#view=map&axes=units&here={name_of(Z)}")
    held: list[Any] = []
    slow = True  # no answer until the test says so
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(route)
        if slow:
            held.append(route)
        else:
            route.continue_()

    tab.route("**/Decode", answer)
    box = tab.locator("#map canvas").bounding_box()
    for step in range(60):
        tab.mouse.move(box["x"] + 100 + 5 * step, box["y"] + 100)
    assert len(held) == 1
    slow = False
    held[0].continue_()
    last = current(tab)
    assert len(asked) == 2
    np.testing.assert_array_equal(picture(tab), decoded(last))


def test_slider_moves_its_unit_and_strips_show_what_it_does(tab, site):
    visit(tab, f"{site}toy#view=units&here={name_of(Z)}")
    line = tab.locator('.unit[data-unit="3"]')
    line.locator("input").fill("0.5")
    z = Z.copy()
    z[3] = 0.5
    wait_shown(tab, z)
    np.testing.assert_array_equal(picture(tab), decoded(z))
    z[3] = 1
    line.locator('button[title="1"] img').wait_for()
    tab.locator('.unit[data-unit="3"] button[title="1"]').click()
    wait_shown(tab, z)
    np.testing.assert_array_equal(picture(tab), decoded(z))


def test_path_goes_from_a_to_b_and_plays(tab, site):
    a, b = np.zeros(16, np.float32), np.ones(16, np.float32)
    visit(tab, f"{site}toy#view=paths&path=LERP&steps=5&a={name_of(a)}&b={name_of(b)}")
    strip = tab.locator("#view .strip button")
    strip.nth(4).wait_for()
    strips = [picture(tab, f"#view .strip button:nth-child({i + 1}) img") for i in range(5)]
    np.testing.assert_array_equal(strips, [np.full((4, 4), round(255 * i / 4)) for i in range(5)])
    tab.get_by_role("button", name="Swap A and B").click()
    tab.locator("#view .strip button").first.wait_for()
    assert picture(tab, "#view .strip button:nth-child(1) img")[0, 0] == 255
    tab.get_by_role("button", name="Play").click()
    wait_shown(tab, b * np.float32(0.5))
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_role("button", name="Great circle (slerp)").click()
    tab.wait_for_url(lambda url: "path=LERP" not in url)


def test_pins_are_kept_in_the_address(tab, site):
    visit(tab, f"{site}toy#view=paths&here={name_of(Z)}")
    tab.get_by_role("button", name="Pin A").click()
    tab.keyboard.press("b")
    tab.wait_for_url("**b=z*")
    assert (address_of(tab)["a"], address_of(tab)["b"]) == (name_of(Z), name_of(Z))


def test_own_image_is_encoded_reconstructed_and_scored(tab, site, server, tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    Image.fromarray(pixels).save(tmp_path / "own.png")
    visit(tab, f"{site}toy#view=own")
    tab.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    tab.get_by_text("Reconstruction", exact=True).wait_for()
    np.testing.assert_array_equal(picture(tab, "#view figure:nth-child(2) img"), pixels)
    wait_shown(tab, (pixels.astype(np.float32) / np.float32(255)).ravel())
    with Client(server.target, model="toy") as client:
        error = client.reconstruct(pixels[None], include_scores=True).reconstruction_error[0]
    assert f"{error:.2f} nats" in tab.locator("#view table").first.inner_text()
    assert tab.get_by_text("What each pixel adds to the error").is_visible()


def test_dropped_image_is_cropped_to_the_models_shape(tab, site):
    visit(tab, f"{site}toy#view=own")
    file = io.BytesIO()
    Image.new("RGB", (90, 50), (10, 10, 10)).save(file, "JPEG")
    transfer = tab.evaluate_handle(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", {type: "image/jpeg"}));
        return data; }""",
        list(file.getvalue()),
    )
    tab.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    tab.get_by_text("Reconstruction", exact=True).wait_for()
    np.testing.assert_allclose(picture(tab, "#view figure:nth-child(2) img"), 10, atol=1)


def test_file_that_is_no_image_is_refused_in_words(tab, site, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    visit(tab, f"{site}toy#view=own")
    tab.locator("input[type=file]").set_input_files(tmp_path / "no.png")
    tab.locator("#view [role=alert]").wait_for()
    assert "not a readable" in tab.locator("#view [role=alert]").inner_text()


def test_samples_are_those_of_the_seed_and_a_click_goes_there(tab, site, server):
    visit(tab, f"{site}toy#view=samples&seed=11&count=5&temperature=0.5")
    tab.locator("#view .wall button").nth(4).wait_for()
    assert tab.locator("#view .wall button").count() == 5
    with Client(server.target, model="toy") as client:
        wanted = client.sample(5, seed=11, temperature=0.5, include_z=True)
    for i in range(5):
        shown = picture(tab, f"#view .wall button:nth-child({i + 1}) img")
        np.testing.assert_array_equal(shown, wanted.x[i])
    tab.locator("#view .wall button").nth(2).click()
    wait_shown(tab, wanted.z[2])
    tab.wait_for_url("**here=11*")
    assert address_of(tab)["here"] == "11:2:0.5"


def test_seed_of_64_bits_loses_no_digit(tab, site, server):
    seed = 2**63 - 25
    visit(tab, f"{site}toy#view=samples&seed={seed}&count=1&here={seed}:0")
    with Client(server.target, model="toy") as client:
        wanted = client.sample(1, seed=seed).x[0]
    np.testing.assert_array_equal(picture(tab), wanted)


def test_region_of_a_is_pasted_into_every_channel(tab, site, server):
    with Client(server.target, model="spatial") as client:
        shape = client.get_model().default.z
    here, a = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    visit(tab, f"{site}spatial#view=spatial&here={name_of(here.ravel())}&a={name_of(a.ravel())}")
    for label, value in (("Left", 1), ("Top", 0), ("Right", 3), ("Bottom", 2)):
        tab.get_by_label(label).fill(str(value))
        tab.get_by_label(label).press("Tab")
    tab.get_by_role("button", name="Paste the region of A here").click()
    tab.wait_for_url("**region=1%2C0%2C3%2C2**")
    here[:, 0:2, 1:3] = 1
    wait_shown(tab, here.ravel())
    tab.wait_for_url(lambda url: address_of(tab).get("here") == name_of(here.ravel()))


def test_region_beyond_the_latent_ends_at_its_edge(tab, site):
    visit(tab, f"{site}spatial#view=spatial")
    tab.get_by_label("Right").fill("99")
    tab.get_by_label("Right").press("Tab")
    tab.get_by_text("Region: columns 0 to 4, rows 0 to 4.").wait_for()


def test_focus_stays_on_the_control_that_was_used(tab, site):
    visit(tab, f"{site}toy#view=paths")
    tab.get_by_role("button", name="Straight line (lerp)").focus()
    tab.keyboard.press("Enter")
    tab.locator("button[aria-pressed=true]:focus", has_text="lerp").wait_for()
    tab.get_by_role("tab", name="Samples").focus()
    tab.keyboard.press("Enter")
    tab.locator("#tab-samples[aria-selected=true]:focus").wait_for()


def test_texts_are_typed_and_sampled(tab, site):
    visit(tab, f"{site}text#view=samples&count=3")
    tab.locator("#view .wall output").nth(2).wait_for()
    tab.get_by_role("tab", name="Own data").click()
    tab.locator("input[name=own]").fill("abc")
    tab.get_by_role("button", name="Encode").click()
    tab.get_by_text("Reconstruction", exact=True).wait_for()


def test_rows_of_tables_are_typed_as_csv(tab, site):
    visit(tab, f"{site}table#view=own")
    tab.locator("input[name=own]").fill("101000,green,0.000002,true")
    tab.get_by_role("button", name="Encode").click()
    tab.get_by_text("Reconstruction", exact=True).wait_for()
    assert "pressure" in tab.locator("#picture table").inner_text()
    tab.locator("input[name=own]").fill("many,green,0.000002,true")
    tab.get_by_role("button", name="Encode").click()
    tab.locator("#view [role=alert]").wait_for()
    assert tab.locator("#view [role=alert]").inner_text() == 'pressure: "many" is not a number.'


def test_copied_python_and_grpcurl_reproduce_the_point(tab, site, server):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit(tab, f"{site}toy#here={name_of(Z)}")
    tab.get_by_role("button", name="Copy as Python").click()
    tab.get_by_text("Copied.").wait_for()
    code = tab.evaluate("navigator.clipboard.readText()")
    code += "\nprint(x.x.tobytes().hex())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == decoded(Z).tobytes().hex()
    tab.get_by_role("button", name="Copy as grpcurl").click()
    while (words := tab.evaluate("navigator.clipboard.readText()")).startswith("import"):
        pass  # the page writes it after the click has returned
    found = re.fullmatch(r"grpcurl -plaintext -d '(.*)' (\S+) vae\.v1\.VaeService/Decode", words)
    assert found
    assert found[2] == server.target
    assert json.loads(found[1])["z"]["shape"] == ["1", "16"]


def test_picture_is_saved_as_png(tab, site):
    visit(tab, f"{site}toy#here={name_of(Z)}")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save PNG").click()
    assert saved.value.suggested_filename == "toy.png"
    np.testing.assert_array_equal(np.asarray(Image.open(saved.value.path())), decoded(Z))


@pytest.mark.parametrize("size", [(320, 640), (3840, 2160)])
@pytest.mark.parametrize("view", ["map", "units", "paths", "own", "samples"])
def test_views_fit_small_and_large_screens(tab, site, size, view):
    tab.set_viewport_size({"width": size[0], "height": size[1]})
    visit(tab, f"{site}toy#view={view}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_number_keys_choose_a_view(tab, site):
    visit(tab, f"{site}toy")
    tab.keyboard.press("2")
    tab.locator("#tab-units[aria-selected=true]").wait_for()


def test_arrow_keys_move_between_tabs(tab, site):
    visit(tab, f"{site}toy")
    tab.locator("#tab-map").focus()
    tab.keyboard.press("ArrowRight")
    tab.locator("#tab-units[aria-selected=true]:focus").wait_for()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    tab.locator("#tab-samples[aria-selected=true]:focus").wait_for()


def test_touch_moves_the_point(browser, site):
    context = browser.new_context(has_touch=True, viewport={"width": 400, "height": 800})
    page = context.new_page()
    visit(page, f"{site}toy#view=map&axes=units&here={name_of(Z)}")
    page.locator("#map canvas").scroll_into_view_if_needed()
    box = page.locator("#map canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.45)
    page.wait_for_url(lambda url: name_of(Z) not in url)
    context.close()


def test_page_is_small():
    static = Path(__file__).parents[2] / "serving" / "explorer" / "static"
    assert sum(path.stat().st_size for path in static.iterdir()) < 150_000
