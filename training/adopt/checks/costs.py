"""Measures seconds and memory of one row at each size, in a process of its own.

That process runs this module: `python -m latentd.training.adopt.checks.costs FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import Graph, GraphFailed
from latentd.training.adopt.checks.memory import Peak
from latentd.training.adopt.checks.subject import Subject, format_short
from latentd.training.errors import AdmissionError

_RUNS: Final = 3
_LONG_SECONDS: Final = 1.0  # a run that takes longer is not repeated
_REQUEST: Final = "request.json"
_GRAPHS: Final = "encoder.onnx", "decoder.onnx"


def check(subject: Subject) -> Finding:
    """Run one row at each size, the smallest first."""
    shapes = [subject.manifest.at(sizes) for sizes in subject.sizes]
    request = [
        {"encoder.onnx": [*one.x.shape], "decoder.onnx": [*one.z], "dtype": one.x.dtype}
        for one in shapes
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in zip(
            _GRAPHS, (subject.candidate.encoder, subject.candidate.decoder), strict=True
        ):
            (Path(folder) / name).write_bytes(graph)
        (Path(folder) / _REQUEST).write_text(json.dumps(request))
        command = [sys.executable, "-m", __name__, folder]
        run = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (our module)
    if run.returncode:
        how = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        raise AdmissionError(
            f"The graphs do not run in a process of their own: {how[0]}. If memory is short, give "
            "the card smaller sizes."
        )
    found = json.loads(run.stdout)
    figures = [{"size": dict(s), **cost} for s, cost in zip(subject.sizes, found, strict=True)]
    line = "; ".join(
        f"{format_short(cost['size'])}: {cost['encode_seconds']:.2g} s to encode, "
        f"{cost['decode_seconds']:.2g} s to decode, {cost['mebibytes']} MiB"
        for cost in figures
    )
    return Finding(line, {"of_one_row": figures})


def _measure(folder: Path) -> list[dict[str, Any]]:
    peak, found = Peak(), []
    encoder, decoder = (Graph((folder / name).read_bytes()) for name in _GRAPHS)
    for shapes in json.loads((folder / _REQUEST).read_text()):
        x = np.zeros((1, *shapes["encoder.onnx"]), shapes["dtype"])
        z = np.zeros((1, *shapes["decoder.onnx"]), np.float32)
        found.append(
            {
                "encode_seconds": _seconds(encoder, x),
                "decode_seconds": _seconds(decoder, z),
                "mebibytes": peak.nbytes >> 20,
            }
        )
    return found


def _seconds(graph: Graph, rows: Any) -> float:
    """Of the fastest run; the first one also allocates memory."""
    times: list[float] = []
    while len(times) < _RUNS and (not times or times[-1] < _LONG_SECONDS):
        began = time.perf_counter()
        graph.run(rows)
        times.append(time.perf_counter() - began)
    return round(min(times), 6)


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(Path(sys.argv[1]))))
    except GraphFailed as failure:
        sys.exit(f"a graph {failure}")
