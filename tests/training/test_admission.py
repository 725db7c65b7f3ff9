"""A model trained elsewhere is admitted, or refused by the check that finds what is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from onnx.helper import make_node as node

from latentd.bundle import LatentFormat, Manifest, RowFormat
from latentd.shapes import Axis, Shape
from latentd.training.adopt.admission import CHECKS, admit
from latentd.training.adopt.candidate import Candidate
from latentd.training.adopt.checks.sizes import _Cost
from latentd.training.adopt.checks.subject import Subject
from tests.support.candidates import (
    Numpy,
    Same,
    lines_of,
    picture,
    refusal,
    spoiled,
)
from tests.support.onnx_graphs import serialized
from tests.support.spatial_bundle import encoded


def test_a_good_model_is_admitted_and_each_check_reports_its_figures(capsys, monkeypatch):
    for check in ("sizes", "agreement", "branches"):  # on a busy machine too, all sizes
        monkeypatch.setattr(f"latentd.training.adopt.checks.{check}._MAX_SECONDS", math.inf)
    figures = admit(spoiled(reference=Numpy(), images=()), print)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(CHECKS)
    random, sizes, repeats, batches, agreement, extremes, branches, colors, likelihood, costs = (
        lines
    )
    assert likelihood == "likelihood: none, as the card has no likelihood"
    assert random == "random nodes: none among 7 of the encoder and 7 of the decoder"
    assert sizes == "sizes: 6 run: 16x16, 24x24, 32x32, 48x80, 80x48, 256x256"
    assert repeats == "determinism: mean, log_var, x have the same bytes in 3 runs"
    assert "mean 0, log_var 0, x 0" in batches
    assert "at 6 of 6 sizes: mean " in agreement
    assert "finite in float32; largest values: mean 2, x 255" in extremes
    assert branches == "branches: the reference gives the same at the extremes, in 11 comparisons"
    assert colors.startswith(
        "colors: none is better than as declared, and as good: 0..1 RGB, 0..255 BGR and 0..1 BGR: "
        "0..255 RGB 20."
    )
    assert costs.count(" s to encode, ") == 6
    json.dumps(figures, allow_nan=False)
    assert figures["sizes"]["run"][3] == {"h": 48, "w": 80}
    assert figures["agreement"]["max_abs_difference"]["mean"] < 1e-5
    assert all(cost["mebibytes"] > 0 for cost in figures["costs"]["of_one_row"])


def test_nothing_needs_torch():
    code = (
        "import sys\n"
        "from tests.support.candidates import spoiled\n"
        "from latentd.training.adopt.admission import admit\n"
        "admit(spoiled(), print)\n"
        "assert not {'torch', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("mean", "encoder.onnx gives at h 16, w 16 another mean than the reference"),
        ("x", "decoder.onnx gives at h 16, w 16 another x than the reference"),
    ],
)
def test_a_reference_with_other_weights(output, sentence):
    class Other(Numpy):
        def encode(self, x):
            mean, log_var = super().encode(x)
            return mean + np.float32(1e-3 if output == "mean" else 0), log_var

        def decode(self, z):
            return super().decode(z) ^ np.uint8(2)  # two levels

    message = refusal(spoiled(reference=Other()))
    assert message.startswith(sentence)
    assert ", that differs by up to " in message
    assert "expected no more than rounding. Check that both have the same weights" in message


@pytest.mark.parametrize(
    ("half", "sentence"),
    [
        ("encode", "encoder.onnx gives for white another mean than the reference, that differs by"),
        ("decode", "decoder.onnx gives for z of +4 sigma another x than the reference, that diff"),
    ],
)
def test_a_reference_that_branches_on_values(half, sentence):
    """Which a graph does not, and usual rows do not show."""

    class Branches(Numpy):
        def encode(self, x):
            mean, log_var = super().encode(x)
            return mean / 2 if half == "encode" and x.min() == 255 else mean, log_var

        def decode(self, z):
            found = super().decode(z)
            return found // 2 if half == "decode" and z.mean() > 3.9 else found

    message = refusal(spoiled(reference=Branches()))
    assert message.startswith(sentence)
    assert "does the model's code branch on values?" in message


def test_a_reference_that_encodes_to_points():
    class Point(Numpy):
        def encode(self, x):
            return encoded(x), None

    message = refusal(spoiled(reference=Point()))
    assert message == (
        "The reference gives mean, and encoder.onnx mean, log_var. Correct the posterior in the "
        "card."
    )


def test_a_slow_reference_is_asked_for_fewer_sizes(monkeypatch):
    monkeypatch.setattr("latentd.training.adopt.checks.agreement._MAX_SECONDS", 0)
    lines: list[str] = []
    figures = admit(spoiled(reference=Numpy()), lines.append)
    assert figures["agreement"]["sizes"] == [{"h": 16, "w": 16}]
    assert "the reference takes too long at the others" in "".join(lines)


def test_sizes_that_were_not_run_are_told(monkeypatch):
    monkeypatch.setattr("latentd.training.adopt.checks.sizes._MAX_SECONDS", 0)
    lines: list[str] = []
    figures = admit(spoiled(), lines.append)
    assert lines[1].startswith(
        "sizes: 5 run: 16x16, 24x24, 32x32, 48x80, 80x48; not run: what is larger, up to 256x256, "
        "as 64x64 might take "
    )
    assert figures["sizes"]["not_run"] == [{"h": 256, "w": 256}]


def test_a_size_may_take_too_much_time_or_memory(monkeypatch):
    monkeypatch.setattr("latentd.training.machine.available_memory", lambda: 10**9)
    assert _Cost(seconds=1.0, nbytes=10**8).too_much(growth=3) == ""
    assert _Cost(seconds=7.0, nbytes=0).too_much(growth=3) == "63 s"
    assert _Cost(seconds=0.0, nbytes=10**8).too_much(growth=4) == "1.6 GB"


def test_the_most_memory_at_once():
    """In a process of its own: in this one, what other tests left may be freed meanwhile."""
    code = """
import numpy as np
from latentd.training.adopt.checks.memory import Peak
before = np.ones(1 << 24)
del before
peak = Peak()
at_first = peak.nbytes
during = np.ones(1 << 23)
del during
print(at_first, peak.nbytes)
"""
    words = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    at_first, most = map(int, words)
    assert at_first < 1 << 25, "what was freed before is not counted"
    assert 1 << 25 < most < 1 << 27


def test_a_graph_that_cannot_be_loaded():
    good = spoiled()
    broken = Candidate(good.manifest, b"no graph", good.decoder, Same(good.encoder, good.decoder))
    assert refusal(broken).startswith("A graph cannot be loaded: ")


def test_costly_models_are_checked_at_a_smaller_size():
    axes = {"h": Axis("h", 8, 16, 512, 512), "w": Axis("w", 8, 200, 512, 256)}
    assert Subject(spoiled()).cheap == {"h": 32, "w": 32}
    assert Subject(spoiled(manifest={"axes": axes})).cheap == {"h": 16, "w": 200}
    largest = {name: Axis(name, 8, 256, 256, 256) for name in ("h", "w")}
    assert Subject(spoiled(manifest={"axes": largest})).cheap == {"h": 256, "w": 256}


def linear(shape: list[int | str], kind: str, x_range: tuple[float, float], **fields) -> Candidate:
    """A model that halves x, whose rows are floats, and encodes them to points."""

    def graph(takes: str, gives: str, factor: float) -> bytes:
        times = node("Mul", [takes, "factor"], [gives])
        values = [{name: ("float32", tuple(shape))} for name in (takes, gives)]
        return serialized([times], *values, {"factor": np.float32(factor)})

    manifest = Manifest(
        model="linear",
        x=RowFormat(kind, Shape.parse(shape), "float32", x_range),
        z=LatentFormat(Shape.parse(shape)),
        likelihood=None,
        posterior="point",
        prior=None,
        opset=18,
        preprocessing="none",
        parity={},
        **fields,
    )

    class Half:
        def encode(self, x: np.ndarray) -> tuple[np.ndarray, None]:
            return x * np.float32(0.5), None

        def decode(self, z: np.ndarray) -> np.ndarray:
            return z * np.float32(2)

    return Candidate(manifest, graph("x", "mean", 0.5), graph("z", "x", 2), Half(), (picture(),))


def test_vectors_without_a_range():
    lines = lines_of(linear([5], "vector", (-math.inf, math.inf)))
    assert lines[1] == "sizes: one, as no axis is free"
    assert "colors: not judged: x holds vectors" in lines


def test_rows_with_one_free_axis():
    axes = {"t": Axis("t", 4, 8, 64, 16)}
    lines = lines_of(linear(["t"], "vector", (-1.0, 1.0), axes=axes))
    assert lines[1] == "sizes: 6 run: 8, 12, 16, 24, 40, 64"


def test_gray_images_of_floats():
    lines = lines_of(linear([8, 12], "image", (0.0, 1.0)))
    assert lines[7].startswith(
        "colors: every form is as good, so this does not show which is right: 0..1 100.0 dB, "
    )
