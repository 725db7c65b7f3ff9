"""p(x | z) as the card names it, and its graph: likelihood.onnx, without PyTorch.

    density = Density.of(card.likelihood)
    graph = density.graph(x)

Densities are of x as our own bundles have it: of images from 0 to 1, of vectors as clients send it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx.parser

from latentd.bundle import Likelihood, RowFormat
from latentd.training.adopt.card import FIXED_WIDTHS, NO_LIKELIHOOD

_MAX_BYTE: Final = 255
_TYPES: Final = {"uint8": "uint8", "float32": "float"}

_TERMS: Final = {
    # log(1 + exp(l)) - x l: large terms cancel exactly
    "logits": """
        l = Gather <axis = 1> (params, first)
        positive = Relu (l)
        product = Mul (unit, l)
        large = Sub (positive, product)
        size = Abs (l)
        most = Sigmoid (size)
        small = Log (most)
        contributions = Sub (large, small)
    """,
    # the logarithms have the bound of PyTorch's binary_cross_entropy
    "probabilities": """
        p = Gather <axis = 1> (params, first)
        log_p = Log (p)
        bounded_p = Max (log_p, lowest_log)
        q = Sub (one, p)
        log_q = Log (q)
        bounded_q = Max (log_q, lowest_log)
        white = Mul (unit, bounded_p)
        rest = Sub (one, unit)
        black = Mul (rest, bounded_q)
        sum = Add (white, black)
        contributions = Neg (sum)
    """,
    "gaussian": """
        deviation = Mul (distance, sharpness)
        square = Mul (deviation, deviation)
        half_square = Mul (square, half)
        wide = Add (half_square, log_width)
        contributions = Add (wide, half_log_tau)
    """,
    "laplace": """
        deviation = Mul (distance, sharpness)
        size = Abs (deviation)
        wide = Add (size, log_width)
        contributions = Add (wide, log_two)
    """,
}
"""-log p(x | z) of each element, from unit, the x of the density."""
_DISTANCE: Final = """
        mean = Gather <axis = 1> (params, first)
        log_width = Gather <axis = 1> (params, second)
        distance = Sub (unit, mean)
        narrow = Neg (log_width)
        sharpness = Exp (narrow)
"""
_CONSTANTS: Final = {
    "highest": float(_MAX_BYTE),
    "one": 1.0,
    "half": 0.5,
    "half_log_tau": 0.5 * math.log(math.tau),
    "log_two": math.log(2),
    "lowest_log": -100.0,
}


@dataclass(frozen=True)
class Density:
    """p(x | z) of an owner's net.

    name:  bernoulli, gaussian or laplace
    form:  of bernoulli what decoded_x is, logits or probabilities; of the others what the decoder
           gives beside the mean: log_var, log_std or log_scale, or "" if the width is fixed
    width: the fixed standard deviation, or scale of laplace, in the net's units
    swapped: the decoder gives the mean second, which no card says: only checks try it
    """

    name: str
    form: str = ""
    width: float | None = None
    swapped: bool = False

    @classmethod
    def of(cls, key: str | Mapping[str, Any] | None) -> Density | None:
        """From the card's key; None: no likelihood."""
        if key is None or isinstance(key, str):
            assert key in (None, NO_LIKELIHOOD)
            return None
        name = key["name"]
        if name == "bernoulli":
            return cls(name, key["decoded_x"])
        width = key[FIXED_WIDTHS[name]]
        return cls(name, width) if isinstance(width, str) else cls(name, width=float(width))

    @property
    def is_bernoulli(self) -> bool:
        """Whether x is nothing but a probability."""
        return self.name == "bernoulli"

    @property
    def learned(self) -> bool:
        """Whether the decoder gives a width beside the mean."""
        return not self.is_bernoulli and bool(self.form)

    @property
    def others(self) -> dict[str, Density]:
        """What an owner may have confused this with, by what to correct in the card."""
        if not self.learned:
            return {}
        found = {
            "what is called the mean is the width: exchange decoded_x and decoded_width, or the "
            "halves of the tensor": dataclasses.replace(self, swapped=True)
        }
        if self.name == "gaussian":
            other = "log_std" if self.form == "log_var" else "log_var"
            found[f'std = "{other}"'] = dataclasses.replace(self, form=other)
        return found

    @property
    def likelihood(self) -> Likelihood:
        """As the manifest has it."""
        if self.is_bernoulli:
            parameter = {"logits": "logit", "probabilities": "probability"}[self.form]
            return Likelihood(self.name, (parameter,), binary=True)
        width = {"gaussian": "log_std", "laplace": "log_scale"}[self.name]
        return Likelihood(self.name, ("mean", width), bounded=False)

    def graph(self, x: RowFormat) -> bytes:
        """likelihood.onnx: x, params -> log_likelihood, float64, in nats; and contributions,
        float32, the terms that sum to its negative."""
        likelihood = self.likelihood
        terms = _TERMS[self.form] if self.is_bernoulli else _DISTANCE + _TERMS[self.name]
        shape = ", ".join(map(str, x.shape.json))
        axes = range(1, len(x.shape.dims) + 1)
        floats = ", ".join(f"float {name} = {{{value!r}}}" for name, value in _CONSTANTS.items())
        unit = "Div (floats, highest)" if x.dtype == "uint8" else "Identity (floats)"
        model = onnx.parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 18]>
            likelihood (
                {_TYPES[x.dtype]}[batch, {shape}] x,
                float[batch, {len(likelihood.parameters)}, {shape}] params
            ) => (double[batch] log_likelihood, float[batch, {shape}] contributions)
            <
                {floats}, int64 first = {{0}}, int64 second = {{1}},
                int64[{len(axes)}] axes = {{{", ".join(map(str, axes))}}}
            >
            {{
                floats = Cast <to = 1> (x)
                unit = {unit}
                {terms}
                doubles = Cast <to = 11> (contributions)
                sums = ReduceSum <keepdims = 0> (doubles, axes)
                log_likelihood = Neg (sums)
            }}
        """)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())
