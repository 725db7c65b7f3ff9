"""The explorer when the server asks for a token, is swapped, restarted, busy, or has no such model;
on the server's own HTTP port."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latentd import bundle
from latentd.client import Client
from latentd.transport.tokens import new_token
from tests.support.explorer import current, name_of, picture, visit, wait_shown
from tests.support.latent_maps import toy_map
from tests.support.server import RunningServer, free_port
from tests.support.slow_engine import SLOW, slow_graph
from tests.support.toy_bundle import PublishToy, toy_files

Z = np.linspace(0, 1, 16, dtype=np.float32)


def site_of(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.server.http_port}/explore/"


@pytest.fixture
def root(tmp_path: Path, publish_toy: PublishToy) -> Path:
    publish_toy(tmp_path / "bundles")
    return tmp_path / "bundles"


def test_page_of_the_server_itself(tab, start_server, root):
    server = start_server(root, http_port=0)
    visit(tab, f"{site_of(server)}toy#here={name_of(Z)}")
    np.testing.assert_array_equal(picture(tab), np.rint(255 * Z).reshape(4, 4))
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="Copy as grpcurl").click()
    tab.get_by_text("Copied.").wait_for()
    assert f" {server.target} vae.v1" in tab.evaluate("navigator.clipboard.readText()")
    assert server.calls("Decode") > 0


def test_page_allows_nothing_from_elsewhere(start_server, root):
    server = start_server(root, http_port=0)
    for name in ("toy", "static/app.js"):
        with urllib.request.urlopen(site_of(server) + name) as response:
            policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_token_is_asked_for_once_and_kept_in_memory(tab, start_server, root, tmp_path):
    token, line = new_token("page", ["models", "generate"])
    (tmp_path / "tokens").write_text(line)
    server = start_server(root, http_port=0, tokens=tmp_path / "tokens")
    tab.goto(f"{site_of(server)}toy#view=units")
    dialog = tab.locator("#token")
    dialog.wait_for()
    dialog.locator("input").fill("wrong")
    dialog.get_by_role("button", name="Use it").click()
    dialog.locator("input:focus").wait_for()  # asked again
    dialog.locator("input").fill(token)
    dialog.get_by_role("button", name="Use it").click()
    tab.locator("html[data-shown]").wait_for(state="attached")
    assert not dialog.is_visible()
    stored = "JSON.stringify([localStorage.length, sessionStorage.length, document.cookie])"
    assert tab.evaluate(stored) == '[0,0,""]'
    assert token not in tab.url


def test_scope_that_is_missing_is_named(tab, start_server, root, tmp_path):
    token, line = new_token("page", ["models", "generate"])
    (tmp_path / "tokens").write_text(line)
    (tmp_path / "a.png").write_bytes(b"no matter")
    server = start_server(root, http_port=0, tokens=tmp_path / "tokens")
    tab.goto(f"{site_of(server)}toy#view=own")
    tab.locator("#token input").fill(token)
    tab.get_by_role("button", name="Use it").click()
    tab.locator("input[type=file]").set_input_files(tmp_path / "a.png")
    tab.locator("#view [role=alert]").wait_for()
    assert 'Scope "infer" required' in tab.locator("#view [role=alert]").inner_text()


def test_model_that_is_not_there_is_named(tab, start_server, root):
    server = start_server(root, http_port=0)
    tab.goto(f"{site_of(server)}nothing")
    tab.locator("#notice:not([hidden])").wait_for()
    assert "nothing" in tab.locator("#notice").inner_text()


def test_new_version_is_noticed_and_shown(tab, start_server, root, publish_toy):
    server = start_server(root, http_port=0, keep_versions=1)
    visit(tab, f"{site_of(server)}toy#view=units&here={name_of(Z)}")
    publish_toy(root, levels=100)
    server.scan()
    tab.locator('.unit[data-unit="0"] input').fill("0.25")
    told = tab.get_by_text("The server now serves version 2; it was 1.")
    told.wait_for()
    assert tab.locator("#version").inner_text() == "version 2"
    z = current(tab)
    np.testing.assert_array_equal(picture(tab), np.rint(100 * z).reshape(4, 4))
    assert told.is_visible()  # the answers that came meanwhile did not take it away


def test_address_with_a_version_stays_with_it(tab, start_server, root, publish_toy):
    server = start_server(root, http_port=0)
    publish_toy(root, levels=100)
    server.scan()
    visit(tab, f"{site_of(server)}toy#version=1&here={name_of(Z)}")
    np.testing.assert_array_equal(picture(tab), np.rint(255 * Z).reshape(4, 4))


def test_server_that_is_gone_is_told_and_found_again(tab, start_server, root):
    port = free_port()
    server = start_server(root, http_port=port)
    visit(tab, f"{site_of(server)}toy#view=units&here={name_of(Z)}")
    server.stop()
    tab.locator('.unit[data-unit="0"] input').fill("0.25")
    tab.get_by_text("The server is gone. Trying again.").first.wait_for()
    start_server(root, http_port=port)
    tab.locator("#notice[hidden]").wait_for(state="attached")
    z = Z.copy()
    z[0] = 0.25
    wait_shown(tab, z)
    np.testing.assert_array_equal(picture(tab), np.rint(255 * z).reshape(4, 4))


def test_points_of_nowhere_are_refused_in_words(tab, start_server, root):
    server = start_server(root, http_port=0)
    for here, said in (
        ("z:AAAA", "The address holds a point of another model."),
        ("here", "The address names no point: here"),
        ("z:***", "The address holds a point that is not base64url."),
        ("7:0:hot", "The address names no point: 7:0:hot"),
        ("row:5", "names a row that this model's map does not have"),
    ):
        tab.goto("about:blank")
        tab.goto(f"{site_of(server)}toy#here={here}")
        tab.locator("#notice:not([hidden])").wait_for()
        assert said in tab.locator("#notice").inner_text()


def test_nonsense_in_the_address_is_named_and_left_out(tab, start_server, root):
    server = start_server(root, http_port=0)
    nonsense = "seed=abc&count=1e9&steps=-1&path=NO&axes=q&temperature=hot&version=x"
    visit(tab, f"{site_of(server)}toy#view=samples&{nonsense}")
    tab.locator("#view .wall button").first.wait_for()
    for one in nonsense.split("&"):
        assert f"The address says {one}; the page cannot use it." in tab.inner_text("#notice")


def test_token_without_the_scope_of_the_map_sees_the_rest(tab, start_server, tmp_path, publish_toy):
    publish_toy(tmp_path / "bundles", map_npz=toy_map().to_npz())
    token, line = new_token("page", ["models", "generate"])
    (tmp_path / "tokens").write_text(line)
    server = start_server(tmp_path / "bundles", http_port=0, tokens=tmp_path / "tokens")
    tab.goto(f"{site_of(server)}toy#here={name_of(Z)}")
    tab.locator("#token input").fill(token)
    tab.get_by_role("button", name="Use it").click()
    wait_shown(tab, Z)
    assert 'Scope "infer" required' in tab.locator("#view .hint").inner_text()


def test_refusal_is_told_until_the_call_succeeds(tab, start_server, root):
    server = start_server(root, http_port=0)
    visit(tab, f"{site_of(server)}toy#view=samples&temperature=99")
    tab.get_by_text("temperature: must be between 0 and 10").wait_for()
    tab.get_by_label("Temperature").fill("0.5")
    tab.locator("#view .wall button").first.wait_for()
    tab.locator("#notice[hidden]").wait_for(state="attached")


def test_busy_server_is_told_and_asked_again(tab, start_server, tmp_path, publish_toy):
    decoder = slow_graph(toy_files()[bundle.DECODER], 3_000_000)
    publish_toy(tmp_path, decoder_onnx=decoder)
    # aio: a batcher's thread runs every batch, and calls that arrive meanwhile wait.
    server = start_server(tmp_path, http_port=0, queue_rows=1, max_batch_rows=1, listener="aio")
    visit(tab, f"{site_of(server)}toy#view=units&here={name_of(Z)}")
    tab.locator('.unit[data-unit="2"] img').first.wait_for()
    with Client(server.target, attempts=1) as client, ThreadPoolExecutor(2) as others:
        slow = [others.submit(client.decode, SLOW) for _ in range(2)]  # one runs, one waits
        while not server.metric("latentd_queue_rows", graph="decoder", model="toy", version="1"):
            assert not all(one.done() for one in slow)
        tab.locator('.unit[data-unit="0"] input').fill("0.25")
        tab.get_by_text("The server is busy.").first.wait_for()
        for one in slow:
            one.result()
    tab.locator("#notice[hidden]").wait_for(state="attached")
    z = Z.copy()
    z[0] = 0.25
    wait_shown(tab, z)


def test_back_and_forward_show_what_was_there_and_read_the_model_once(tab, start_server, root):
    server = start_server(root, http_port=0)
    visit(tab, f"{site_of(server)}toy#view=map&here={name_of(Z)}")
    for view in ("units", "samples", "paths"):
        tab.locator(f"#tab-{view}").click()
    for view in ("samples", "units"):
        tab.go_back()
        tab.locator(f"#tab-{view}[aria-selected=true]").wait_for()
    tab.go_forward()
    tab.locator("#tab-samples[aria-selected=true]").wait_for()
    np.testing.assert_array_equal(current(tab), Z)
    assert server.calls("GetModel") == 1
