"""From the pointer's move to the pixels: the explorer's map in a real Chromium.

The page itself takes the times: from the event to the first frame after the decoded picture is
loaded. Usage: make bench-explorer BUNDLES=models MODEL=digits
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
from playwright.sync_api import sync_playwright

from tests.explorer.conftest import ARGUMENTS, CHROMIUM
from tests.support.explorer import visit
from tests.support.processes import running
from tests.support.server import free_port

_MOVES: Final = 200
_MEASURE: Final = """async ([moves]) => {
  const {app} = await import("./static/app.js");
  const canvas = document.querySelector("#map canvas"), box = canvas.getBoundingClientRect();
  const times = [];
  for (let i = 0; i < moves; i++) {
    const angle = i * 2.4, radius = 0.35 * Math.sqrt((i + 1) / moves);
    const started = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", {
      clientX: box.left + box.width * (0.5 + radius * Math.cos(angle)),
      clientY: box.top + box.height * (0.5 + radius * Math.sin(angle)), bubbles: true}));
    const wanted = app.z;
    while (app.shown !== wanted) await new Promise((done) => setTimeout(done));
    const image = document.querySelector("#picture img");
    if (image) await image.decode();
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - started);
  }
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", default="demo/models")
    parser.add_argument("--model", default="digits")
    args = parser.parse_args()
    port = free_port()
    latentd = Path(sys.executable).parent / "latentd"
    flags = ("--port", "0", "--metrics-port", "0", "--http-port", port)
    command = (latentd, "serve", "--bundles", args.bundles, *flags)
    with running(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as api:
        assert server.stderr is not None
        while "Listening on" not in server.stderr.readline():
            pass
        browser = api.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        visit(tab, f"http://127.0.0.1:{port}/explore/{args.model}#view=map")
        tab.evaluate(_MEASURE, [20])
        times = np.array(tab.evaluate(_MEASURE, [_MOVES]))
        browser.close()
    p50, p95 = np.percentile(times, [50, 95])
    print(f"{args.model}: pointer to pixels, {_MOVES} moves: p50 {p50:.0f} ms, p95 {p95:.0f} ms")


if __name__ == "__main__":
    main()
