"""Graphs that no model may have: random, in training mode, mixing rows, or of baked sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.helper import make_node as node

from latentd.bundle import LatentFormat
from latentd.shapes import Axis, Shape
from tests.support.candidates import (
    AFTER,
    BEFORE,
    inserted,
    refusal,
    spoiled,
)

NOISE = [
    node("RandomNormalLike", [BEFORE], ["drawn"], name="/posterior/randn"),
    node("Add", [BEFORE, "drawn"], [AFTER]),
]


def test_an_encoder_that_draws_inside():
    assert refusal(spoiled(encoder=inserted("mean", NOISE))) == (
        "encoder.onnx has the node /posterior/randn, a RandomNormalLike: it draws random numbers "
        "inside, so the same row gives another result each time; expected no such node. Export it "
        "up to the mean and the log-variance, or name these tensors under [tensors] in the card, "
        "and the graph is cut there."
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
    ]
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
        f"Expected {axes} to be free: remove what fixes that axis in the model's code, export it "
        "with that axis dynamic, or give the card fixed sizes."
    )


def test_an_encoder_that_takes_even_numbers_of_units_only():
    """Every size but an odd number of units hides it: the smallest, the default, its doublings."""
    windows = [
        node("SpaceToDepth", [BEFORE], ["windows"], blocksize=2),
        node("DepthToSpace", ["windows"], [AFTER], blocksize=2),
    ]
    message = refusal(spoiled(encoder=inserted("mean", windows)))
    assert message.startswith(
        "encoder.onnx does not take every h and w of the card: at h 24, w 24 it fails"
    )
    assert message.endswith("Correct min, max and multiple_of of that axis in the card's sizes.")


def test_results_that_are_not_finite_at_some_sizes():
    nodes = [
        node("Size", [BEFORE], ["elements"]),
        node("Greater", ["elements", "many"], ["is_large"]),
        node("Where", ["is_large", "nan", BEFORE], [AFTER]),
    ]
    constants = {"many": np.array(200), "nan": np.float32("nan")}
    message = refusal(spoiled(encoder=inserted("mean", nodes, constants)))
    assert message.startswith("encoder.onnx gives at h 48, w 80 a mean that is not finite; ")


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
    assert message.endswith("Correct min, max and multiple_of of that axis in the card's sizes.")


def test_a_card_with_wrong_shapes():
    message = refusal(spoiled(manifest={"z": LatentFormat(Shape.parse([5, "h/8", "w/8"]))}))
    assert message.startswith(
        "encoder.onnx does not run at its default size, h 32, w 32: it gives mean as float32 "
        "[1, 4, 4, 4] instead of float32 [1, 5, 4, 4]"
    )
