"""The input and outputs that a graph must have, at every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime as ort

from latentd.errors import BundleError
from latentd.runtime.buffers import RowSpec
from latentd.shapes import Shape

_TYPES: Final = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(uint8)": "uint8"}


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph's input and outputs: name -> dtype, and shape of one row.

    The input has each free axis, so its lengths decide those of the outputs.
    """

    input: tuple[str, str, Shape]
    outputs: Mapping[str, tuple[str, Shape]]

    @property
    def fixed(self) -> bool:
        """Whether all lengths are fixed but the batch."""
        return self.input[2].fixed

    def rows_at(self, lengths: Sequence[int]) -> tuple[RowSpec, dict[str, RowSpec]]:
        """A row of the input with these lengths, and the row of each output."""
        _, dtype, shape = self.input
        sizes = shape.sizes_of(lengths)
        outputs = {name: (dtype, shape.at(sizes)) for name, (dtype, shape) in self.outputs.items()}
        return (dtype, tuple(lengths)), outputs

    def check(self, session: ort.InferenceSession) -> None:
        """Raise BundleError(signature) if the graph's names, types or shapes are others."""
        name, dtype, shape = self.input
        inputs = {value.name: value for value in session.get_inputs()}
        if set(inputs) != {name}:
            raise BundleError(
                "signature", f"The graph's inputs are {sorted(inputs)}, not ['{name}']."
            )
        check_value(inputs[name], dtype, shape)
        outputs = {value.name: value for value in session.get_outputs()}
        for output, (dtype, shape) in self.outputs.items():
            if output not in outputs:
                raise BundleError("signature", f"The graph has no output named {output}.")
            check_value(outputs[output], dtype, shape)


def check_value(value: Any, dtype: str, shape: Shape) -> None:
    """Raise BundleError(signature) if a graph's input or output has another type or shape."""
    rows, *lengths = value.shape
    dims = shape.dims
    if _TYPES.get(value.type) != dtype or len(lengths) != len(dims):
        raise _mismatch(value, dtype, shape)
    for dim, length in zip(dims, lengths, strict=True):
        if dim.axis and isinstance(length, int):
            raise BundleError(
                "signature",
                f"{value.name} has shape {value.shape}: it is frozen to one {dim.axis}. The "
                f"manifest says {shape}; export the graph with this axis free.",
            )
        if not dim.axis and length != dim.length:
            raise _mismatch(value, dtype, shape)
    if isinstance(rows, int):
        raise BundleError("signature", f"{value.name} has a fixed batch of {rows} rows.")


def _mismatch(value: Any, dtype: str, shape: Shape) -> BundleError:
    lengths = ", ".join(str(dim.json) for dim in shape.dims)
    return BundleError(
        "signature",
        f"{value.name} is {value.type} of shape {value.shape}, not {dtype} of shape "
        f"[rows, {lengths}].",
    )
