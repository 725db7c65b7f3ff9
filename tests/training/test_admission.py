"""A model trained elsewhere is admitted, or refused by the check that finds what is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latentd.bundle import LatentFormat, Manifest, RowFormat
from latentd.shapes import Axis, Shape
from latentd.training.adopt.admission import CHECKS, admit
from latentd.training.adopt.candidate import Candidate, NetRange
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError
from tests.support.candidates import AFTER, BEFORE, Same, inserted, picture, spoiled
from tests.support.onnx_graphs import serialized
from tests.support.spatial_bundle import LOG_VAR, decoded, encoded

node = helper.make_node


class Numpy:
    """The good model's reference, which uses no graph."""

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        mean = encoded(x)
        return mean, np.full_like(mean, LOG_VAR)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return decoded(z)


def refusal(candidate: Candidate) -> str:
    with pytest.raises(AdmissionError) as raised:
        admit(candidate, lambda line: None)
    return str(raised.value)


def test_a_good_model_is_admitted_and_each_check_reports_its_figures(capsys, monkeypatch):
    for check in ("sizes", "agreement"):  # on a busy machine too, all sizes
        monkeypatch.setattr(f"latentd.training.adopt.checks.{check}._MAX_SECONDS", math.inf)
    figures = admit(spoiled(reference=Numpy(), images=()), print)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(CHECKS)
    random, sizes, repeats, batches, agreement, extremes, colors, costs = lines
    assert random == "random nodes: none among 7 of the encoder and 7 of the decoder"
    assert sizes == "sizes: 5 run: 16x16, 32x32, 48x80, 80x48, 256x256"
    assert repeats == "determinism: mean, log_var, x have the same bytes in 3 runs"
    assert "mean 0, log_var 0, x 0" in batches
    assert "at 5 of 5 sizes: mean " in agreement
    assert "finite in float32; largest values: mean 2, x 255" in extremes
    assert "as declared is best: 0..255 RGB 20." in colors
    assert costs.count(" s to encode, ") == 5
    json.dumps(figures, allow_nan=False)
    assert figures["sizes"]["run"][2] == {"h": 48, "w": 80}
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


NOISE = [
    node("RandomNormalLike", [BEFORE], ["drawn"], name="/posterior/randn"),
    node("Add", [BEFORE, "drawn"], [AFTER]),
]


def test_an_encoder_that_draws_inside():
    assert refusal(spoiled(encoder=inserted("mean", NOISE))) == (
        "encoder.onnx has the node /posterior/randn, a RandomNormalLike: it draws random numbers "
        "inside, so the same row gives another result each time; expected no such node. Export it "
        "up to the mean and the log-variance, or name these tensors in the card."
    )


def test_a_decoder_that_draws_in_a_branch():
    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            nodes, "b", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        )

    nodes = [
        node(
            "If",
            ["yes"],
            [AFTER],
            then_branch=branch(node("Identity", ["z"], ["out"])),
            else_branch=branch(node("RandomUniformLike", ["z"], ["out"], name="deep")),
        )
    ]
    message = refusal(spoiled(decoder=inserted("z", nodes, {"yes": np.array(True)})))
    assert message.startswith("decoder.onnx has the node deep, a RandomUniformLike")
    assert message.endswith("Export it without noise.")


def test_an_encoder_whose_function_normalizes_by_the_batch():
    """Whether the function trains is an attribute of its call."""

    def change(model: onnx.ModelProto) -> None:
        norm = node(
            "BatchNormalization",
            ["a", "one", "none", "none", "one"],
            ["b", "m", "v"],
            name="bn1",
        )
        norm.attribute.append(
            onnx.AttributeProto(
                name="training_mode", ref_attr_name="training", type=onnx.AttributeProto.INT
            )
        )
        constants = [
            node("Constant", [], [name], value_floats=[value] * 3)
            for name, value in (("one", 1.0), ("none", 0.0))
        ]
        opset = [helper.make_opsetid("", 18)]
        model.functions.append(
            helper.make_function(
                "own", "Norm", ["a"], ["b"], [*constants, norm], opset, ["training"]
            )
        )
        model.opset_import.append(helper.make_opsetid("own", 1))
        inserted("colors", [node("Norm", [BEFORE], [AFTER], domain="own", training=1)])(model)

    message = refusal(spoiled(encoder=change))
    assert "bn1, a BatchNormalization in training mode" in message
    assert message.endswith(
        "Call eval() on the model before its export, and export it for inference."
    )


def test_batch_normalization_in_training_mode():
    constants = {"ones": np.ones(3, np.float32), "none": np.zeros(3, np.float32)}
    norm = node(
        "BatchNormalization",
        [BEFORE, "ones", "none", "none", "ones"],
        [AFTER, "running_mean", "running_var"],
        name="bn2",
        training_mode=1,
    )
    message = refusal(spoiled(encoder=inserted("colors", [norm], constants)))
    assert "encoder.onnx has the node bn2, a BatchNormalization in training mode" in message


def test_results_that_change_from_run_to_run(monkeypatch):
    """By whatever operator: here by one that the search for random nodes is made to miss."""
    monkeypatch.setattr("latentd.training.graph_checks.random_node", lambda model: None)
    assert refusal(spoiled(encoder=inserted("mean", NOISE))) == (
        "The same rows gave another mean the second time; expected the same bytes. Remove what is "
        "random or keeps a state from the model, and export it again."
    )


@pytest.mark.parametrize(
    ("graph", "value", "name"), [("encoder", "mean", "mean"), ("decoder", "z", "x")]
)
def test_rows_mixed_by_the_batch(graph, value, name):
    nodes = [
        node("ReduceMean", [BEFORE, "of_batch"], ["center"], keepdims=1),
        node("Sub", [BEFORE, "center"], [AFTER]),
        node("Mul", [AFTER, "three"], ["unused"]),
    ][:2]
    message = refusal(spoiled(**{graph: inserted(value, nodes, {"of_batch": np.array([0])})}))
    assert message.startswith(f"{graph}.onnx mixes the rows of a batch: {name} of row ")
    assert " in a batch of 2 differs from that of the same row alone by " in message
    assert message.endswith(
        "Remove what computes over the batch axis, such as statistics of a batch, and export it "
        "again."
    )


@pytest.mark.parametrize(
    ("lengths", "axes"), [([-1, 3, 4, 4], "h and w"), ([0, 3, -1, 4], "w"), ([0, 3, 4, -1], "h")]
)
def test_an_encoder_with_a_baked_size(lengths, axes):
    reshape = [node("Reshape", [BEFORE, "baked"], [AFTER])]
    change = inserted("colors", reshape, {"baked": np.array(lengths)})
    message = refusal(spoiled(encoder=change))
    assert message.startswith(
        f"encoder.onnx is frozen to one {axes}: it runs at h 32, w 32, but at h 16, w 16 it "
    )
    assert message.endswith(
        f"Expected {axes} to be free: export it with that axis dynamic, or give the card fixed "
        "sizes."
    )


def test_a_decoder_with_a_baked_size():
    reshape = [node("Reshape", [BEFORE, "baked"], [AFTER])]
    change = inserted("colors", reshape, {"baked": np.array([-1, 3, 4, 4])})
    message = refusal(spoiled(decoder=change))
    assert message.startswith("decoder.onnx is frozen to one h and w: it runs at h 32, w 32, but ")


def test_a_decoder_that_always_gives_one_size():
    """It runs at every size, but gives the wrong one."""
    resize = node("Resize", [BEFORE, "", "", "baked"], [AFTER], mode="nearest")
    change = inserted("z", [resize], {"baked": np.array([1, 4, 4, 4])})
    message = refusal(spoiled(decoder=change))
    assert "it gives x as uint8 [1, 32, 32, 3] instead of uint8 [1, 16, 16, 3]" in message


def test_sizes_that_the_card_promises_and_the_net_does_not_take():
    """A net of stride 16 whose card says multiples of 8."""
    nodes = [
        node(
            "AveragePool", [BEFORE], ["half"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"
        ),
        node("Resize", ["half", "", "twice"], [AFTER], mode="nearest"),
    ]
    change = inserted("colors", nodes, {"twice": np.array([1, 1, 2, 2], np.float32)})
    axes = {name: Axis(name, 8, min=24, max=256, default=32) for name in ("h", "w")}
    message = refusal(spoiled(encoder=change, manifest={"axes": axes}))
    assert message.startswith(
        "encoder.onnx does not take every h and w of the card: at h 24, w 24 it gives mean as"
    )
    assert message.endswith("Correct the lengths that the card gives that axis.")


def test_a_card_with_wrong_shapes():
    message = refusal(spoiled(manifest={"z": LatentFormat(Shape.parse([5, "h/8", "w/8"]))}))
    assert message.startswith(
        "encoder.onnx does not run at its default size, h 32, w 32: it gives mean as float32 "
        "[1, 4, 4, 4] instead of float32 [1, 5, 4, 4]"
    )


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


HALF = [
    node("Cast", [BEFORE], ["half"], to=TensorProto.FLOAT16),
    node("Mul", ["half", "large"], ["larger"], name="/up/Mul"),
    node("Mul", ["larger", "small"], ["back"]),
    node("Cast", ["back"], [AFTER], to=TensorProto.FLOAT),
]
"""It overflows beyond 3.2, and real rows stay below."""


HALF_CONSTANTS = {"large": np.float16(20000), "small": np.float16(1 / 20000)}


def test_float16_that_overflows_at_four_sigma():
    change = inserted("z", HALF, HALF_CONSTANTS)
    message = refusal(spoiled(decoder=change, manifest={"precision": "float16"}))
    assert message == (
        "decoder.onnx overflows float16 at its node /up/Mul, a Mul, for z of +4 sigma; expected "
        "numbers up to 65504. Export the model in float32."
    )


def test_a_mask_of_infinity_is_no_overflow():
    """As in attention: what is masked is infinite, and nothing that comes of it is."""
    nodes = [
        node("Cast", [BEFORE], ["half"], to=TensorProto.FLOAT16),
        node("Where", ["no", "mask", "half"], ["masked"]),
        node("Max", ["masked", "half"], ["back"]),
        node("Cast", ["back"], [AFTER], to=TensorProto.FLOAT),
    ]
    constants = {
        "no": np.array([False, True, False, True]).reshape(4, 1, 1),
        "mask": np.float16(-np.inf),
    }
    change = inserted("z", nodes, constants)
    lines = lines_of(spoiled(decoder=change, manifest={"precision": "float16"}))
    assert "extremes: finite in float16" in "".join(lines)


def test_an_encoder_that_overflows_float16_inside():
    constants = {"large": np.float16(1000), "small": np.float16(1 / 1000)}
    message = refusal(
        spoiled(encoder=inserted("floats", HALF, constants), manifest={"precision": "float16"})
    )
    assert "encoder.onnx overflows float16 at its node /up/Mul, a Mul, for white;" in message


def test_float32_that_overflows_at_four_sigma():
    """It would hide behind the conversion to bytes."""
    nodes = [
        node("Mul", [BEFORE, "large"], ["larger"]),
        node("Mul", ["larger", "large"], ["largest"]),
        node("Div", ["largest", "large"], ["smaller"]),
        node("Div", ["smaller", "large"], [AFTER]),
    ]
    message = refusal(spoiled(decoder=inserted("z", nodes, {"large": np.float32(1.2e19)})))
    assert message.startswith(
        "decoder.onnx gives NaN or infinity in x for z of +4 sigma, in float32;"
    )


def test_an_encoder_without_a_number_for_black():
    message = refusal(spoiled(encoder=inserted("unit", [node("Log", [BEFORE], [AFTER])])))
    assert message.startswith(
        "encoder.onnx gives NaN or infinity in mean for black, in float32; expected finite"
    )


UNIT_NET = {
    "encoder": inserted(
        "unit",
        [
            node("Mul", [BEFORE, "two"], ["wide"]),
            node("Sub", ["wide", "unit_one"], ["moved"]),
            node("Clip", ["moved", "unit_zero", "unit_one"], [AFTER]),
        ],
        {"two": np.float32(2), "unit_one": np.float32(1), "unit_zero": np.float32(0)},
    ),
    "decoder": inserted(
        "logits",
        [
            node("Clip", [BEFORE, "zero", "one"], ["bounded"]),
            node("Add", ["bounded", "one"], ["moved"]),
            node("Div", ["moved", "two"], [AFTER]),
        ],
        {"two": np.float32(2)},
    ),
}
"""The net works on 0..1, and the graphs convert to -1..1."""


def test_a_wrong_range():
    message = refusal(spoiled(**UNIT_NET, net_range=NetRange((-1.0,), (1.0,))))
    assert message.startswith(
        "The model reconstructs pictures better as 0..1 RGB than as declared, -1..1 RGB: by "
    )
    assert message.endswith("Correct the card: the range is 0..1.")


def test_bgr():
    """A net that drops its first channel, which was blue where it was trained."""
    mask = inserted(
        "unit", [node("Mul", [BEFORE, "mask"], [AFTER])], {"mask": np.float32([0, 1, 1])}
    )
    yellow = picture(colors=(1, 0.8, 0))
    message = refusal(spoiled(encoder=mask, images=(yellow,)))
    assert message.startswith("The model reconstructs pictures better as 0..255 BGR than as ")
    assert message.endswith("Correct the card: the order of channels is BGR.")
    as_bgr = spoiled(encoder=mask, images=(yellow[..., ::-1],))
    assert "as declared is best" in "".join(lines_of(as_bgr))


def test_another_order_that_is_hardly_better_is_told():
    dim = inserted(
        "unit", [node("Mul", [BEFORE, "dim"], [AFTER])], {"dim": np.float32([0.93, 1, 1])}
    )
    assert "colors: 0..255 BGR is better by 0." in "".join(lines_of(spoiled(encoder=dim)))


def lines_of(candidate: Candidate) -> list[str]:
    lines: list[str] = []
    admit(candidate, lines.append)
    return lines


def test_pictures_that_no_form_reconstructs_are_no_evidence():
    black = inserted("colors", [node("Mul", [BEFORE, "zero"], [AFTER])])
    line = next(line for line in lines_of(spoiled(decoder=black)) if line.startswith("colors: "))
    assert line.startswith("colors: not judged: no form gives photographs better")
    assert line.endswith("name pictures of the model's own kind with --images")


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
    assert lines[1] == "sizes: 5 run: 8, 16, 24, 40, 64"


def test_gray_images_of_floats():
    lines = lines_of(linear([8, 12], "image", (0.0, 1.0)))
    assert lines[6].startswith("colors: as declared is best: 0..1 100.0 dB")
