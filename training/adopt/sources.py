"""The places that a model may come from: each function returns a route for `adopt`.

adopt(sources.onnx("encoder.onnx", "decoder.onnx"), "card.toml", "models", "mine")
adopt(sources.module(vae), {"range": [-1, 1], ...}, "models", "mine")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentd.training.adopt import onnx_pair
from latentd.training.adopt.card import Card
from latentd.training.adopt.folders.diffusers import DiffusersFolder
from latentd.training.adopt.folders.optimum import OptimumFolder
from latentd.training.adopt.reference import NetReference
from latentd.training.adopt.source import Report, Route, Source

if TYPE_CHECKING:
    from torch import Tensor


def onnx(encoder: Path | str, decoder: Path | str) -> Route:
    """Two ONNX graphs."""

    def open_(card: Card, _: Report) -> Source:
        pair = onnx_pair.load(Path(encoder), Path(decoder), card.tensors)
        return Source(
            pair,
            card,
            lambda full: NetReference(pair, full),
            {"route": "onnx", "files": pair.files},
        )

    return open_


def diffusers(folder: Path | str) -> Route:
    """A folder that diffusers saved, of an autoencoder or of a pipeline that has one."""

    def open_(card: Card, report: Report) -> Source:
        found = DiffusersFolder.find(Path(folder))
        card = found.fill(card, report)
        from latentd.training.adopt.modules import diffusers_vae, torch_source

        vae = diffusers_vae.load(found)
        origin = {"route": "diffusers", "class": found.config.class_name, "files": found.files()}
        return torch_source.open_(vae.encode, vae.decode, card, report, origin)

    return open_


def model(factory: str, weights: Sequence[Path | str] = ()) -> Route:
    """What the function `package.module:factory` returns: an object with encode(x) and decode(z).

    weights: files to load into it, a state dict or a safetensors file each; "PART=FILE" loads the
             object's attribute PART
    """

    def open_(card: Card, report: Report) -> Source:
        from latentd.training.adopt.modules import factory as factories
        from latentd.training.adopt.modules import torch_source
        from latentd.training.adopt.modules import weights as weight_files

        made = factories.make(factory)
        files = weight_files.load(made, [*map(str, weights)], report)
        origin = {"route": "model", "model": factory, "files": files}
        return torch_source.open_(made.encode, made.decode, card, report, origin)

    return open_


def module(model: Any) -> Route:
    """An object with encode(x) and decode(z), usually a torch.nn.Module. It is left as it is."""

    def open_(card: Card, report: Report) -> Source:
        from latentd.training.adopt.modules import torch_source

        origin = {"route": "module", "model": type(model).__qualname__, "files": {}}
        return torch_source.open_(model.encode, model.decode, card, report, origin)

    return open_


def pair(encode: Callable[[Tensor], Any], decode: Callable[[Tensor], Any]) -> Route:
    """Two modules or functions of PyTorch. They are left as they are."""

    def open_(card: Card, report: Report) -> Source:
        from latentd.training.adopt.modules import torch_source

        names = [getattr(one, "__qualname__", type(one).__qualname__) for one in (encode, decode)]
        origin = {"route": "pair", "model": ", ".join(names), "files": {}}
        return torch_source.open_(encode, decode, card, report, origin)

    return open_


def optimum(folder: Path | str) -> Route:
    """A folder that optimum exported: vae_encoder and vae_decoder, each with its config."""

    def open_(card: Card, report: Report) -> Source:
        found = OptimumFolder.read(Path(folder), card.tensors)
        pair = found.pair
        return Source(
            pair,
            found.fill(card, report),
            lambda full: NetReference(pair, full),
            {"route": "optimum", "class": found.config.class_name, "files": found.files},
        )

    return open_
