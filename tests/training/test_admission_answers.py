"""Answers that no model may give: infinite at the extremes, or better as another range or order."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from onnx.helper import make_node as node

from latentd.training.adopt.candidate import NetRange
from tests.support.candidates import (
    AFTER,
    BEFORE,
    inserted,
    lines_of,
    picture,
    refusal,
    spoiled,
)

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
        "numbers up to 65504. Adopt the model in float32."
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
    assert "none is better than as declared" in "".join(lines_of(as_bgr))


def test_another_order_that_is_hardly_better_is_told():
    dim = inserted(
        "unit", [node("Mul", [BEFORE, "dim"], [AFTER])], {"dim": np.float32([0.93, 1, 1])}
    )
    assert "colors: 0..255 BGR is better by 0." in "".join(lines_of(spoiled(encoder=dim)))


def test_pictures_that_no_form_reconstructs_are_no_evidence():
    black = inserted("colors", [node("Mul", [BEFORE, "zero"], [AFTER])])
    line = next(line for line in lines_of(spoiled(decoder=black)) if line.startswith("colors: "))
    assert line.startswith("colors: not judged: no form gives photographs better")
    assert line.endswith("name pictures of the model's own kind with --images")
