"""The source that a model in PyTorch is: two graphs exported from it, and itself as the reference.

Only the routes of PyTorch import this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latentd.training import graph_checks
from latentd.training.adopt import onnx_file, onnx_pair
from latentd.training.adopt.card import Card
from latentd.training.adopt.modules import example, halves, purity, torch_export
from latentd.training.adopt.modules.halves import Half
from latentd.training.adopt.modules.torch_export import Names
from latentd.training.adopt.onnx_file import OnnxFile
from latentd.training.adopt.reference import NetReference
from latentd.training.adopt.source import Report, Source
from latentd.training.errors import AdmissionError, TrainingError

_ASKED: Final = ("scale", "shift", "prior", "license", "source")
_FIRST: Final = {3: "NCT", 4: "NCHW"}
"""The layout of tensors with so many axes, channels first."""


def open_(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    card: Card,
    report: Report,
    origin: Mapping[str, Any],
) -> Source:
    """The source of a model that has these two functions. Raises TrainingError.

    card:   what is known of it so far
    origin: for the manifest, as Source has it
    """
    _check(card)
    encoder, decoder = halves.encoder(encode), halves.decoder(decode)
    if modes := sorted(encoder.in_training | decoder.in_training):
        report(f"eval: used in evaluation mode, though in training mode were {', '.join(modes)}")
    if card.sizes:
        first = "NCT" if "t" in card.sizes else "NCHW"
        card = dataclasses.replace(card, layout=card.layout or first)
    x, given = example.find(encoder, card)
    purity.require(purity.ENCODE, encoder, x, given)
    z, decoded, card = _decoded(decoder, given, card)
    encodings = ("mean", "log_var") if len(given) == 2 else ("latent",)
    decodings = ("decoded_x", "decoded_width")[: len(decoded)]
    names = Names(purity.ENCODE, "x", encodings), Names(purity.DECODE, "z", decodings)
    pair = onnx_pair.of(
        _exported(encoder, x, names[0], _free(card, card.layout, x), report),
        _exported(decoder, z, names[1], _free(card, card.z_layout, z), report),
        {name: name for name in decodings},
    )

    def reference(full: Card) -> NetReference:
        return NetReference(pair, full, encoder.run, decoder.run)

    return Source(pair, card, reference, {**origin, "torch": torch.__version__})


def _check(card: Card) -> None:
    """Refuse at once what would be refused after an export that takes long."""
    if card.tensors:
        raise TrainingError(
            "The card has tensors, which are names in ONNX graphs; a model in PyTorch says by what "
            "encode(x) and decode(z) return. Leave the key out."
        )
    missing = [key for key in _ASKED if getattr(card, key) is None]
    if not card.sizes and (card.layout or card.range):
        missing = ["sizes.h", "sizes.w", *missing]
    if missing:
        raise TrainingError(
            f"The model does not say, and the card must: {', '.join(missing)}. "
            "`latentd adopt --card-template` explains each."
        )


def _decoded(
    decoder: Half, given: Sequence[Tensor], card: Card
) -> tuple[Tensor, Sequence[Tensor], Card]:
    """Rows of z as the decoder takes them, what it gives, and the card with what they show."""
    whole = given[0]
    if whole.ndim in _FIRST and card.is_channels_last and card.z_layout is None:
        raise TrainingError(
            f"The model does not say, and the card must: z_layout. x is {card.layout}, and z has "
            f"{whole.ndim} axes: {list(whole.shape[1:])} a row."
        )
    if whole.ndim in _FIRST:
        card = dataclasses.replace(card, z_layout=card.z_layout or _FIRST[whole.ndim])
    if len(given) == 2:
        candidates = {"gaussian": whole}
    else:
        axis = whole.ndim - 1 if whole.ndim > 2 and card.is_z_channels_last else 1
        candidates = {"gaussian": whole.chunk(2, dim=axis)[0], "point": whole}
        if card.posterior is not None:
            candidates = {card.posterior: candidates[card.posterior]}
    found, failures = {}, {}
    for posterior, z in candidates.items():
        try:
            found[posterior] = z, purity.require(purity.DECODE, decoder, z)
        except TrainingError:
            raise
        except Exception as error:  # of the owner's code
            failures[posterior] = halves.in_words(error)
    if not found:
        raise TrainingError(
            f"decode(z) does not take what encode(x) gives, of shape {list(whole.shape[1:])} a "
            f"row: {'; '.join(f'as {name}, {text}' for name, text in failures.items())}."
        )
    if len(found) > 1:
        raise TrainingError(
            "The model does not say, and the card must: posterior. decode(z) takes all of what "
            "encode(x) gives, and half of its channels too."
        )
    ((posterior, (z, decoded)),) = found.items()
    if len(decoded) == 2 and card.likelihood is None:
        raise TrainingError(
            "decode(z) returns two tensors, which are the mean and the width of a likelihood; but "
            "the card has no likelihood. Give it, or let decode return x alone."
        )
    return z, decoded, card.filled({"posterior": posterior}, "encode(x) and decode(z) say")


def _free(card: Card, layout: str | None, rows: Tensor) -> list[int]:
    """The numbers of the free axes of x or of z."""
    if rows.ndim < 3:
        return [0]
    first = 1 if layout is not None and layout.endswith("C") else 2
    sizes = [card.sizes[axis] for axis in sorted(card.sizes)]
    return [0, *(axis for axis, size in enumerate(sizes, first) if example.is_free(size))]


def _exported(
    half: Half, rows: Tensor, names: Names, free: Sequence[int], report: Report
) -> OnnxFile:
    # Exporters stop at strides of a tensor that is part of another one.
    model = torch_export.export(half, rows.contiguous(), names, free, report)
    if node := graph_checks.random_node(model):
        if node.op_type == "BatchNormalization":
            raise AdmissionError(
                f"{names.half} normalizes by the rows of the batch, also in evaluation mode: "
                f"{node.name or node.output[0]} is {node.op_type} in training mode. Give these "
                "modules running statistics (track_running_stats), or use another norm, and train "
                "on."
            )
        raise AdmissionError(
            f"{names.half} draws random numbers inside: {node.name or node.output[0]} is "
            f"{node.op_type}. {purity.ADVICE[names.half]}."
        )
    return onnx_file.exported(model, names.half)
