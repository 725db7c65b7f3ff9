"""axe finds no serious fault in any view, light or dark."""

from __future__ import annotations

import pytest

from tests.support.explorer import visit
from tests.support.server import StartServer


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["map", "units", "paths", "own", "samples"])
def test_no_serious_fault(tab, view, scheme, toy_bundles, module_servers: StartServer):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    server = module_servers(toy_bundles, http_port=0)
    tab.emulate_media(color_scheme=scheme)
    visit(tab, f"http://127.0.0.1:{server.server.http_port}/explore/toy#view={view}")
    found = [
        f"{fault['id']}: {node['html']}"
        for fault in axe.run(tab).response["violations"]
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert not found
