"""The owner's nets on arrays as clients have them: what a bundle is compared with.

The conversions are written in numpy, from the card alone. They share no code with `glue`, so a
mistake in either shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from latentd.training.adopt.card import Card
from latentd.training.adopt.onnx_pair import OnnxPair
from latentd.training.array import Array


class NetReference:
    """Implements candidate.Reference.

    pair:   the owner's graphs
    card:   complete
    encode: the owner's net where it is not the graph: an array as the net has it -> what the
            encoder's graph gives; None: the graph
    decode: the same of the decoder
    """

    def __init__(
        self,
        pair: OnnxPair,
        card: Card,
        encode: Callable[[Array], Sequence[Array]] | None = None,
        decode: Callable[[Array], Sequence[Array]] | None = None,
    ) -> None:
        self._pair, self._card = pair, card
        self._encode, self._decode = encode or pair.encoder.run, decode or pair.decoder.run

    def encode(self, x: Array) -> tuple[Array, Array | None]:
        """See Reference."""
        outputs = [array.astype(np.float64) for array in self._encode(self._to_net(x))]
        if self._channels_last:
            outputs = [np.moveaxis(array, -1, 1) for array in outputs]
        mean, log_var = outputs[0], outputs[1] if len(outputs) > 1 else None
        gaussian = self._card.posterior == "gaussian"
        if gaussian and log_var is None:
            channels = mean.shape[1] // 2
            mean, log_var = mean[:, :channels], mean[:, channels:]
        scale, shift = self._of_channels(self._card.scale), self._of_channels(self._card.shift)
        if log_var is not None:
            if self._card.clip_log_var is not None:
                log_var = log_var.clip(*self._card.clip_log_var)
            spread = (log_var.swapaxes(1, -1) + np.log(scale**2)).swapaxes(1, -1)
            log_var = spread.astype(np.float32)
        z = ((mean.swapaxes(1, -1) - shift) * scale).swapaxes(1, -1)
        return z.astype(np.float32), log_var

    def decode(self, z: Array) -> Array:
        """See Reference."""
        value, _ = self._decoded(z)
        if self._form == "logits":
            value = (1 + np.tanh(value / 2)) / 2  # the logistic function, without overflow
        return self._from_net(value)

    def params(self, z: Array) -> Array:
        """See Reference."""
        value, width = self._decoded(z)
        key = self._likelihood
        if key["name"] == "bernoulli":
            parameters = [self._in_order(value)]
        else:
            fixed = key["std"] if key["name"] == "gaussian" else key["scale"]
            if width is None:
                width = np.full(value.shape, np.log(fixed))
            elif fixed == "log_var":
                width = width / 2
            # A density of other units: its width changes as a difference of two values does.
            step = self._unit(np.ones_like(value)) - self._unit(np.zeros_like(value))
            parameters = [self._unit(value), self._in_order(width) + np.log(step)]
        return np.stack(parameters, axis=1).astype(np.float32)

    def _decoded(self, z: Array) -> tuple[Array, Array | None]:
        """What the decoder gives as x, and the width beside it, in float64, in the net's form."""
        scale, shift = self._of_channels(self._card.scale), self._of_channels(self._card.shift)
        latents = (z.astype(np.float64).swapaxes(1, -1) / scale + shift).swapaxes(1, -1)
        if self._channels_last:
            latents = np.moveaxis(latents, 1, -1)
        value, *more = self._decode(latents)
        if value.dtype != np.uint8:
            value = value.astype(np.float64)
        if not more and self._form.startswith("log_"):
            axis = value.ndim - 1 if self._card.layout in ("NHWC", "NTC") else 1
            value, *more = np.split(value, 2, axis)
        return value, more[0].astype(np.float64) if more else None

    @property
    def _likelihood(self) -> Mapping[str, Any]:
        key = self._card.likelihood
        return key if isinstance(key, Mapping) else {}

    @property
    def _form(self) -> str:
        """What the decoder gives, where the card has a name for it."""
        forms = (self._likelihood.get(key) for key in ("decoded_x", "std", "scale"))
        return next((form for form in forms if isinstance(form, str)), "")

    def _in_order(self, x: Array) -> Array:
        """An array in the net's form, as clients have it, with its values unchanged."""
        if self._channels_first:
            x = np.moveaxis(x, 1, -1)
        return x[..., ::-1] if self._card.color_order == "BGR" else x

    def _unit(self, x: Array) -> Array:
        """x in the net's form, as the density has it: pixels from 0 to 1."""
        card, x = self._card, np.moveaxis(x, 1, -1) if self._channels_first else x
        if card.range is not None and self._pair.is_image:
            low, high = card.range
            x = (x - low) / (high - low)
        elif card.mean is not None and card.std is not None:
            x = x * np.array(card.std) + np.array(card.mean)
        return x[..., ::-1] if card.color_order == "BGR" else x

    @property
    def _channels_first(self) -> bool:
        return self._card.layout in ("NCHW", "NCT")

    @property
    def _channels_last(self) -> bool:
        return len(self._pair.decoder.dims) > 2 and self._card.z_layout in ("NHWC", "NTC")

    @staticmethod
    def _of_channels(numbers: tuple[float, ...] | None) -> Array:
        return np.asarray(numbers, np.float64)

    def _to_net(self, x: Array) -> Array:
        card = self._card
        if card.color_order == "BGR":
            x = x[..., ::-1]
        if self._pair.encoder.dtype != "uint8":
            pixels = x.astype(np.float64)
            if card.range is not None and self._pair.is_image:
                low, high = card.range
                x = np.interp(pixels, [0, 255], [low, high])
            elif card.mean is not None and card.std is not None:
                whole = 255 if self._pair.is_image else 1
                x = (pixels / whole - np.array(card.mean)) / np.array(card.std)
        if self._channels_first:
            x = np.moveaxis(x, -1, 1)
        return np.ascontiguousarray(x)

    def _from_net(self, x: Array) -> Array:
        if x.dtype == np.uint8:
            x = self._in_order(x)
        elif self._pair.is_image:
            x = np.rint(255 * self._unit(x)).clip(0, 255).astype(np.uint8)
        else:
            x = self._unit(x).astype(np.float32)
        return np.ascontiguousarray(x)
