"""The dashboard as a picture: two servers under load, a real Prometheus, every panel's queries.

Half a minute of calm, a rush that is more than they can bear, calm again; new versions and a
damaged one on the way. make draw-dashboard
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import matplotlib as mpl
import numpy as np
import yaml

from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.processes import StartProcess, process_starter
from tests.support.prometheus_run import DASHBOARD, ROOT, Life, Prometheus, filled, until

sys.path.insert(0, str(ROOT / "tests/bench"))
import models

mpl.use("Agg")
from matplotlib import pyplot
from PIL import Image

PHASES = [(30, 0.05), (40, 1.0), (30, 0.05)]  # seconds, and how much of the callers' time is spent
PODS = ("latentd-a", "latentd-b")
CALLERS = 4  # of each server


def call_on(target: str, busy: list[float], number: int) -> None:
    """Calls of several kinds until there is nothing to do any more."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = VaeServiceStub(channel)
        while busy[0]:
            began = time.monotonic()
            calls = [
                stub.Sample.future(pb.SampleRequest(count=rows, seed=number), timeout=2)
                for rows in (1, 1, 4, 16, 40)
            ]
            calls.append(stub.Sample.future(pb.SampleRequest(count=8), timeout=2))
            if busy[0] == 1.0:
                calls[-1].cancel()
            with contextlib.suppress(grpc.RpcError):
                sample = stub.Sample(pb.SampleRequest(count=2, seed=number), timeout=2)
                stub.Encode(pb.EncodeRequest(x=sample.x), timeout=2)
                stub.Reconstruct(pb.ReconstructRequest(x=sample.x), timeout=2)
            for call in calls:
                with contextlib.suppress(grpc.FutureCancelledError):
                    call.exception()
            time.sleep((time.monotonic() - began) * (1 / busy[0] - 1) if busy[0] else 0)


def record(
    start: StartProcess, folder: Path
) -> list[tuple[dict[str, Any], list[tuple[str, list[list[float]]]]]]:
    """Live through PHASES; each panel with its series: name, [seconds, value] pairs."""
    bundles = folder / "bundles"
    models.publish(bundles, "conv")
    lives = {pod: Life(start, folder, bundles, 1, queue_rows=128) for pod in PODS}
    rules = yaml.safe_load((DASHBOARD.parent / "rules.yaml").read_text())["spec"]
    prometheus = Prometheus(
        start, folder, rules, {pod: life.metrics for pod, life in lives.items()}
    )
    busy = [PHASES[0][1]]
    callers = [
        threading.Thread(target=call_on, args=(life.target, busy, number))
        for life in lives.values()
        for number in range(CALLERS)
    ]
    try:
        until(lambda: prometheus.query("up"))
        for caller in callers:
            caller.start()
        began = time.time()
        for number, (seconds, share) in enumerate(PHASES):
            busy[0] = share
            if number:
                newest = models.publish(bundles, "conv")
            time.sleep(seconds)
        (newest / "decoder.onnx").write_bytes(b"half of it")
        shutil.copytree(newest, newest.with_name("9"))
        time.sleep(10)
        end = time.time()
        panels = []
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            drawn = []
            for target in panel["targets"]:
                for series in prometheus.query_range(filled(target["expr"]), began, end):
                    values = [[at - began, float(value)] for at, value in series["values"]]
                    drawn.append((named(target.get("legendFormat", ""), series["metric"]), values))
            panels.append((panel, drawn))
        return panels
    finally:
        busy[0] = 0.0
        for caller in callers:
            caller.join()
        prometheus.stop()
        for life in lives.values():
            life.stop()


def named(text: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    if not text:
        return "  ".join(labels[name][:30] for name in sorted(labels))
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), text)


UNITS = {"reqps": "calls/s", "percentunit": "share", "s": "s"}


def draw(panels: list[Any], picture: Path) -> None:
    rows = math.ceil(len(panels) / 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(15, 2.6 * rows), layout="constrained")
    for axis, (panel, drawn) in zip(axes.flat, panels, strict=False):
        assert drawn, f"{panel['title']} has no data"
        axis.set_title(panel["title"], fontsize=10)
        axis.tick_params(labelsize=7)
        if panel["type"] == "table":
            axis.axis("off")
            for line, (name, _) in enumerate(drawn):
                axis.text(0, 0.9 - 0.15 * line, name, fontsize=7)
            continue
        for name, values in drawn:
            axis.plot(*zip(*values, strict=True), label=name, linewidth=1)
        defaults = panel["fieldConfig"]["defaults"]
        axis.set_ylabel(UNITS.get(defaults["unit"], ""), fontsize=7)
        axis.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
        # The largest; what is zero all the time needs no name.
        lines = [line for line in axis.lines if np.nanmax([0.0, *line.get_ydata()]) > 0]
        lines.sort(key=lambda line: -np.nanmax(line.get_ydata()))
        if lines:
            legend = axis.legend(handles=lines[:6], fontsize=6, loc="upper left")
            legend.set_in_layout(False)
    with tempfile.TemporaryDirectory() as folder:
        figure.savefig(Path(folder, "whole.png"), dpi=80)
        # Fewer colors suffice, at a third of the bytes.
        Image.open(Path(folder, "whole.png")).convert("RGB").quantize(64).save(
            picture, optimize=True
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, process_starter() as start:
        draw(record(start, Path(folder)), Path(sys.argv[1]))
