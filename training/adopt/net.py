"""An owner's net as the bundle shows it: shapes of x and z, and the conversions between the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from latentd.shapes import Axis, Shape
from latentd.training.adopt import card_checks
from latentd.training.adopt.card import Card
from latentd.training.adopt.density import Density
from latentd.training.adopt.onnx_pair import OnnxPair
from latentd.training.errors import AdmissionError, TrainingError

_MAX_BYTE: Final = 255


@dataclass(frozen=True)
class Net:
    """What the card and the graphs together say.

    axes:      the free axes
    x, z:      of a row, as clients have it
    kind:      image, vector or audio
    bytes_in:  the encoder takes bytes
    bytes_out: the decoder gives bytes
    joined:    mean and log_var are halves of one tensor
    density:   p(x | z); None: the card has none
    """

    card: Card
    axes: Mapping[str, Axis]
    x: Shape
    z: Shape
    kind: str
    bytes_in: bool
    bytes_out: bool
    joined: bool
    density: Density | None = None

    @property
    def is_image(self) -> bool:
        """Whether clients have x as bytes."""
        return self.kind == "image"

    @property
    def has_channels_first(self) -> bool:
        """Of x, where it has more axes than channels; clients have them last."""
        return len(self.x.dims) > 1 and not self.card.is_channels_last

    @property
    def has_z_channels_last(self) -> bool:
        """Of z; clients have them first."""
        return len(self.z.dims) > 1 and self.card.is_z_channels_last

    @property
    def is_gaussian(self) -> bool:
        """Whether the encoder gives a log_var."""
        return self.card.posterior == "gaussian"

    @property
    def ends(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """What the net has for the lowest and the highest value of a pixel, in its own order of
        colors; one number, or one per channel. None: it takes and gives bytes, or no images."""
        if not self.is_image or (self.bytes_in and self.bytes_out):
            return None
        if self.card.range is not None:
            low, high = self.card.range
            return (low,), (high,)
        mean, std = self._normalization()
        return tuple((-mean / std).tolist()), tuple(((1 - mean) / std).tolist())

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """factor and offset: the net's x is factor * x + offset."""
        if (ends := self.ends) is not None:
            low, high = map(np.asarray, ends)
            return tuple(((high - low) / _MAX_BYTE).tolist()), tuple(low.tolist())
        mean, std = self._normalization()
        return tuple((1 / std).tolist()), tuple((-mean / std).tolist())

    @property
    def unit(self) -> tuple[Any, Any]:
        """factor and offset: the density's x is factor * (the net's x) + offset."""
        factor, offset = map(np.asarray, self.affine)
        whole = _MAX_BYTE if self.is_image else 1
        return 1 / (factor * whole), -offset / (factor * whole)

    def _normalization(self) -> Sequence[Any]:
        """mean and std, one number or one per channel."""
        return np.broadcast_arrays(self.card.mean or (0.0,), self.card.std or (1.0,))


def describe(pair: OnnxPair, card: Card) -> tuple[Net, Card]:
    """The net of a pair, and the card with what the graphs add to it.

    Raises TrainingError, which lists all missing keys; AdmissionError if the graphs do not fit
    together.
    """
    card_checks.check_kind(card, pair)
    facts = pair.facts(card)
    card = card.filled({k: v for k, v in facts.items() if k != "sizes"}, "the graphs say")
    card = dataclasses.replace(card, sizes=facts.get("sizes", card.sizes))
    if keys := card_checks.missing_keys(card, pair):
        raise TrainingError(
            f"The graphs do not say, and the card must: {', '.join(keys)}. "
            "`latentd adopt --card-template` explains each."
        )
    card_checks.check_card(card, pair)
    lengths = {name: _default(size) for name, size in card.sizes.items()}
    x_shape = _net_shape(pair, card, lengths)
    outputs = pair.encoder.run(np.zeros((2, *x_shape)))
    joined = card.posterior == "gaussian" and len(outputs) == 1
    z = _encoded(pair, card, outputs, joined)
    shapes = _shapes(pair, card, lengths, z.shape[1:], x_shape)
    density = Density.of(card.likelihood)
    decoded = _decoded(pair, card, density, pair.decoder.run(z))
    if decoded.shape != (2, *x_shape):
        raise AdmissionError(
            f"{pair.decoder.name} decodes a latent of shape {list(z.shape[1:])} to "
            f"{list(decoded.shape[1:])}; expected {list(x_shape)}, the shape that "
            f"{pair.encoder.name} took. Are these two graphs of one model?"
        )
    net = Net(
        card=card,
        **shapes,
        kind=pair.kind,
        bytes_in=pair.encoder.dtype == "uint8",
        bytes_out=decoded.dtype == np.uint8,
        joined=joined,
        density=density,
    )
    _check_channels(net)
    return net, card


def _default(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else size["default"]


def _net_shape(pair: OnnxPair, card: Card, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """One row of x as the encoder takes it."""
    _, *dims = pair.encoder.dims
    axis = len(dims) if card.is_channels_last else 1
    channels = dims[axis - 1]
    if card.channels not in (None, channels):
        raise TrainingError(
            f"The card says channels = {card.channels}; {pair.encoder.name} takes "
            f"{channels or 'any number'}. Correct the card, or leave the key out."
        )
    if channels is None and not pair.axes:
        raise TrainingError(
            f"{pair.encoder.name} takes vectors of any length; export it for one length, or audio "
            "with an axis of channels."
        )
    if channels is None:
        raise TrainingError(
            f"{pair.encoder.name} does not state its number of channels, axis {axis} as the "
            f"layout is {card.layout}. Export it with that axis fixed."
        )
    sides = [lengths[name] for name in pair.axes]
    return (*sides, channels) if card.is_channels_last else (channels, *sides)


def _encoded(pair: OnnxPair, card: Card, outputs: list[Any], joined: bool) -> Any:
    """Two rows of z as the decoder takes them."""
    mean = outputs[0]
    if joined:
        axis = mean.ndim - 1 if mean.ndim > 2 and card.is_z_channels_last else 1
        if mean.shape[axis] % 2:
            raise AdmissionError(
                f"{pair.encoder.name} gives {mean.shape[axis]} channels; expected an even number, "
                "for mean and log-variance in one tensor."
            )
        mean = np.split(mean, 2, axis)[0]
    elif len(outputs) == 2 and outputs[1].shape != mean.shape:
        raise AdmissionError(
            f"{pair.encoder.name} gives a mean of shape {list(mean.shape[1:])} and a log-variance "
            f"of {list(outputs[1].shape[1:])}; expected the same shape."
        )
    taken = pair.decoder.dims
    fits = mean.ndim == len(taken) and all(
        length in (None, given) for length, given in zip(taken[1:], mean.shape[1:], strict=True)
    )
    if not fits or mean.shape[0] != 2:
        raise AdmissionError(
            f"{pair.encoder.name} gives latents of shape {list(mean.shape)} for two rows; "
            f"{pair.decoder.name} takes {['batch', *(n or 'any' for n in taken[1:])]}. Are these "
            "two graphs of one model, and is posterior what the encoder gives?"
        )
    return mean


def _decoded(pair: OnnxPair, card: Card, density: Density | None, outputs: list[Any]) -> Any:
    """Two rows of x as the decoder gives them, without a width that p(x | z) may have beside it."""
    if len(outputs) == 2 and not (density and density.learned):
        raise TrainingError(
            "The card has tensors.decoded_width, but its likelihood needs none. Leave it out, or "
            'give a likelihood whose std is "log_var" or "log_std".'
        )
    decoded = outputs[0]
    if density is None:
        return decoded
    if decoded.dtype == np.uint8:
        raise TrainingError(
            f"The card has a likelihood, but {pair.decoder.name} gives bytes, which are rounded. "
            "Export the decoder with the floats before them."
        )
    is_unit = card.range == (0.0, 1.0) if pair.is_image else card.mean is None
    if density.is_bernoulli and (pair.kind == "audio" or not is_unit):
        raise TrainingError(
            "A bernoulli likelihood is of values from 0 to 1: of images, whose range is [0, 1] in "
            "the card, or of vectors without mean and std."
        )
    if not density.learned:
        return decoded
    if len(outputs) == 2:
        if outputs[1].shape != decoded.shape:
            raise AdmissionError(
                f"{pair.decoder.name} gives a mean of shape {list(decoded.shape[1:])} and a "
                f"{density.form} of {list(outputs[1].shape[1:])}; expected the same shape."
            )
        return decoded
    axis = decoded.ndim - 1 if card.is_channels_last else 1
    if decoded.shape[axis] % 2:
        raise AdmissionError(
            f"{pair.decoder.name} gives {decoded.shape[axis]} channels; expected an even number, "
            f"for the mean and the {density.form} of p(x | z) in one tensor. If they are in two, "
            "name them under [tensors] in the card: decoded_x and decoded_width."
        )
    return np.split(decoded, 2, axis)[0]


def _shapes(
    pair: OnnxPair,
    card: Card,
    lengths: Mapping[str, int],
    z: tuple[int, ...],
    x: tuple[int, ...],
) -> dict[str, Any]:
    """axes, x and z of a Net."""
    if len(z) > 1 and card.is_z_channels_last:
        z = (z[-1], *z[:-1])
    channels = x[-1] if card.is_channels_last else x[0]
    axes, sides, z_dims = {}, list[int | str](), list[int | str](z)
    for number, (name, size) in enumerate(sorted(card.sizes.items()), 1):
        if isinstance(size, int) or size["min"] == size["max"]:
            sides.append(lengths[name])
            continue
        if len(z) != len(x):
            raise TrainingError(
                f"{pair.encoder.name} gives latents of one length for every {name}. Give one "
                f"sizes.{name} in the card, as in `{name} = 64`."
            )
        divisor, rest = divmod(lengths[name], z[number])
        if rest:
            raise AdmissionError(
                f"{pair.encoder.name} makes {z[number]} positions of {name} {lengths[name]}, which "
                f"does not divide it. Choose sizes.{name}.default as a multiple."
            )
        axes[name] = _axis(name, size, divisor)
        sides.append(name)
        z_dims[number] = f"{name}/{divisor}" if divisor > 1 else name
    return {"axes": axes, "x": Shape.parse([*sides, channels]), "z": Shape.parse(z_dims)}


def _axis(name: str, size: Mapping[str, int], divisor: int) -> Axis:
    multiple = size.get("multiple_of", divisor)
    if multiple % divisor:
        raise TrainingError(
            f"sizes.{name}.multiple_of is {multiple}; expected a multiple of {divisor}, as the "
            f"encoder makes one position of {divisor} {'samples' if name == 't' else 'pixels'}."
        )
    for bound in ("min", "max", "default"):
        if size[bound] % multiple:
            raise TrainingError(
                f"sizes.{name}.{bound} is {size[bound]}; expected a multiple of {multiple}, as "
                f"{'the card says' if 'multiple_of' in size else 'the encoder was found to need'}."
            )
    return Axis(name, multiple, size["min"], size["max"], size["default"])


def _check_channels(net: Net) -> None:
    """Numbers per channel are as many as there are channels."""
    x_channels, z_channels = net.x.dims[-1].length, net.z.dims[0].length
    for keys, count in ((("mean", "std"), x_channels), (("scale", "shift"), z_channels)):
        for key in keys:
            numbers = getattr(net.card, key)
            if numbers is not None and len(numbers) not in (1, count):
                raise TrainingError(
                    f"The card's {key} has {len(numbers)} numbers; expected one, or one for each "
                    f"of {count} channels."
                )
    if net.card.color_order == "BGR" and not (net.is_image and x_channels == 3):
        raise TrainingError("The card's color_order is BGR, but x does not have 3 channels.")
