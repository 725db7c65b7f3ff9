"""Two ONNX graphs, an encoder and a decoder, and what they say about themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from latentd.training import machine
from latentd.training.adopt import onnx_file
from latentd.training.adopt.card import Card
from latentd.training.adopt.onnx_file import OnnxFile
from latentd.training.array import Array
from latentd.training.errors import AdmissionError, TrainingError
from latentd.training.onnx_session import ERRORS, cpu_session, shrink_after_run

DTYPES: Final[Mapping[int, str]] = {
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}
_LOG_VAR: Final = re.compile(r"log_?var", re.IGNORECASE)
_MEAN: Final = re.compile(r"mean|(^|_)mu(_|$)", re.IGNORECASE)
_KINDS: Final = {2: "vector", 3: "audio", 4: "image"}
"""What x is, by the number of its axes, the batch among them."""
_CHANNELS: Final = {3: (1, 2), 4: (1, 3)}
"""The usual numbers of channels, likewise."""


@dataclass(frozen=True)
class Graph:
    """One of the two graphs, with one input.

    dims:    lengths of the input, beginning with the batch; None: free
    outputs: the tensors that the bundle needs
    """

    file: OnnxFile
    input: str
    dtype: str
    dims: tuple[int | None, ...]
    outputs: tuple[str, ...]
    session: ort.InferenceSession

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.file.path)

    def run(self, rows: Array) -> list[Array]:
        """The outputs for rows of the graph's own form. Raises AdmissionError."""
        try:
            inputs = {self.input: rows.astype(self.dtype)}
            arrays = self.session.run(list(self.outputs), inputs, shrink_after_run())
        except Exception as error:  # the runtime's exceptions have no common class
            raise AdmissionError(
                f"{self.name} cannot run {self.input} of shape {list(rows.shape)}, which the card "
                f"and its own inputs allow: {error}. If the graph was exported for one size, "
                "export it with free axes, or give that size under [sizes]."
            ) from None
        return [np.asarray(array) for array in arrays]


@dataclass(frozen=True)
class OnnxPair:
    """Both graphs. `facts` are the card's keys that they answer."""

    encoder: Graph
    decoder: Graph

    @property
    def kind(self) -> str:
        """What x is: image, vector or audio."""
        return _KINDS[len(self.encoder.dims)]

    @property
    def is_image(self) -> bool:
        """Whether x has height, width and channels."""
        return self.kind == "image"

    @property
    def axes(self) -> str:
        """The lengths of x, one letter each, without channels."""
        return {"image": "hw", "audio": "t", "vector": ""}[self.kind]

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Digests of all files that were read, by name; the decoder's begin with its folder's name
        if both graphs have one name."""
        encoder, decoder = self.encoder.file, self.decoder.file
        if encoder.path.parent == decoder.path.parent:
            return encoder.files | decoder.files
        return {
            f"{file.path.parent.name}/{name}": digest
            for file in (encoder, decoder)
            for name, digest in file.files.items()
        }

    def facts(self, card: Card) -> dict[str, Any]:
        """The card's keys that the graphs answer; a key that they do not answer is left out."""
        found: dict[str, Any] = {}
        if self.axes and (layout := _layout(self.encoder.dims, self.axes)):
            found["layout"] = layout
        layout = found.get("layout", card.layout)
        first = f"NC{self.axes.upper()}"
        if len(self.decoder.dims) > 2 and layout == first and card.z_layout is None:
            found["z_layout"] = first
        if len(self.encoder.outputs) == 2:
            found["posterior"] = "gaussian"
        elif (posterior := self._posterior(card.z_layout or found.get("z_layout"))) is not None:
            found["posterior"] = posterior
        if layout:
            lengths = dict(zip(layout.lower(), self.encoder.dims, strict=True))
            lengths = {axis: lengths[axis] for axis in self.axes}
            sizes = dict(card.sizes) | {k: n for k, n in lengths.items() if n is not None}
            if sizes != card.sizes:
                for axis, length in lengths.items():
                    given = card.sizes.get(axis, length)
                    if length is not None and given != length:
                        raise TrainingError(
                            f"The card gives sizes.{axis} as {given}; {self.encoder.name} has "
                            f"{length} only. Export the graph with this axis free, or leave the "
                            "key out."
                        )
                found["sizes"] = sizes
        return found

    def _posterior(self, z_layout: str | None) -> str | None:
        """By the number of channels, if both graphs state it."""
        rank = len(self.decoder.dims)
        axis = 1 if rank == 2 else z_layout.index("C") if z_layout else None
        encoded = _dims(self.encoder.file.model.graph.output[0])
        if axis is None or encoded is None or len(encoded) != rank:
            return None
        given, taken = encoded[axis], self.decoder.dims[axis]
        if given is None or taken is None:
            return None
        if given not in (taken, 2 * taken):
            raise AdmissionError(
                f"{self.encoder.name} gives {given} channels and {self.decoder.name} takes "
                f"{taken}; expected {taken} for a point, or {2 * taken} for mean and log-variance. "
                "Are these two graphs of one model?"
            )
        return "gaussian" if given == 2 * taken else "point"


def load(encoder: Path, decoder: Path, tensors: Mapping[str, str]) -> OnnxPair:
    """Read both graphs. Raises TrainingError.

    tensors: names of tensors, as the card has them
    """
    return of(onnx_file.read(encoder), onnx_file.read(decoder), tensors)


def of(encoder: OnnxFile, decoder: OnnxFile, tensors: Mapping[str, str]) -> OnnxPair:
    """The pair of two graphs that were read, as `load`."""
    encoding = _graph(encoder, tensors.get("x"), "x", _encoder_outputs(encoder, tensors))
    decoding = _graph(decoder, tensors.get("z"), "z", _decoder_outputs(decoder, tensors))
    if len(encoding.dims) not in _KINDS:
        raise TrainingError(
            f"{encoding.name} takes {len(encoding.dims)} axes; expected 4 for images (batch, "
            "channels, height, width in some order), 3 for audio (batch, channels, samples) or 2 "
            "for vectors (batch, length)."
        )
    if len(decoding.dims) not in (2, len(encoding.dims)):
        raise TrainingError(
            f"{decoding.name} takes {len(decoding.dims)} axes; expected {len(encoding.dims)}, as "
            f"{encoding.name} takes, or 2 for latents that are vectors."
        )
    return OnnxPair(encoding, decoding)


def _graph(file: OnnxFile, given: str | None, key: str, outputs: Sequence[str]) -> Graph:
    name, inputs = file.path, {value.name: value for value in file.inputs}
    if len(inputs) != 1 or given not in (None, *inputs):
        raise TrainingError(
            f"{name} has the inputs {', '.join(map(repr, inputs))}; expected one, "
            f"{repr(given) if given else key}. A net with further inputs cannot be adopted."
        )
    file.cut(outputs)
    file.reject_random()
    ((input_name, value),) = inputs.items()
    dtype = DTYPES.get(value.type.tensor_type.elem_type)
    dims = _dims(value)
    if dtype is None or dims is None:
        raise TrainingError(
            f"{name}: {input_name} is not a tensor of bytes or floats whose number of axes is "
            "stated. Export the graph again."
        )
    if dims[0] is not None:
        raise AdmissionError(
            f"{name} takes exactly {dims[0]} rows at once. Export it with a free batch axis "
            "(dynamic_axes or dynamic_shapes), so that rows of many calls can run together."
        )
    return Graph(file, input_name, dtype, dims, tuple(outputs), session(file))


def session(file: OnnxFile) -> ort.InferenceSession:
    """A session for an owner's graph on the CPU. Raises TrainingError."""
    graph = file.model.SerializeToString()
    try:  # warnings about the owner's graph are not ours to print
        return cpu_session(graph, machine.cpu_count(), ERRORS)
    except Exception as error:  # the runtime's exceptions have no common class
        raise TrainingError(f"ONNX Runtime cannot load {file.path}: {error}.") from None


def _encoder_outputs(file: OnnxFile, tensors: Mapping[str, str]) -> list[str]:
    """moments or mean; or mean and log_var."""
    if "moments" in tensors:
        return [tensors["moments"]]
    if "mean" in tensors:
        return [tensors[key] for key in ("mean", "log_var") if key in tensors]
    names = [value.name for value in file.model.graph.output]
    if len(names) == 1:
        return names
    log_var = [name for name in names if _LOG_VAR.search(name)]
    mean = [name for name in names if name not in log_var and _MEAN.search(name)]
    if len(names) == 2 and len(log_var) == len(mean) == 1:
        return mean + log_var
    raise TrainingError(
        f"{file.path} has the outputs {', '.join(map(repr, names))}. Name the latent's under "
        "[tensors] in the card: moments; or mean and log_var; or mean alone, if it is a point."
    )


def _decoder_outputs(file: OnnxFile, tensors: Mapping[str, str]) -> list[str]:
    if "decoded_x" in tensors:
        return [tensors[key] for key in ("decoded_x", "decoded_width") if key in tensors]
    names = [value.name for value in file.model.graph.output]
    if len(names) == 1:
        return names
    raise TrainingError(
        f"{file.path} has the outputs {', '.join(map(repr, names))}. Name the one that is x "
        "as decoded_x under [tensors] in the card, and decoded_width if its likelihood has one."
    )


def _layout(dims: Sequence[int | None], axes: str) -> str | None:
    """By the number of channels, if only one axis can be theirs."""
    usual = _CHANNELS[len(dims)]
    first, last = dims[1] in usual, dims[-1] in usual
    if first is last:
        return None
    return f"NC{axes.upper()}" if first else f"N{axes.upper()}C"


def _dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
