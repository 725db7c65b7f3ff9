"""The config.json of an autoencoder of diffusers, and the keys of a card that it answers.

config = VaeConfig.read(Path("vae/config.json"))
card = config.fill(card, "gaussian", "hw", report)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from latentd import schema
from latentd.training.adopt.card import NO_PRIOR, Card
from latentd.training.adopt.folders import model_files
from latentd.training.errors import TrainingError

FILE: Final = "config.json"
_MAX_BYTES: Final = 1 << 20
_LEAST: Final = 2  # positions of a latent along an axis, unless the card says otherwise
_MOST: Final = 1024  # pixels along an axis, likewise
_MOST_POSITIONS: Final = 128  # along an axis: attention over their square takes 1 GiB in float32
_SECONDS: Final = 30  # of audio; beyond it, diffusers itself can cut a row


@dataclass(frozen=True)
class _Class:
    """A class of diffusers, as pipelines call it.

    channels: the key with the number of x's channels
    blocks:   the key with one entry for each size that the net works at
    clip:     of log_var, in the class's code
    scaled:   pipelines scale what it encodes
    """

    blocks: str
    channels: str = "in_channels"
    layout: str = "NCHW"
    is_gaussian: bool = False
    clip: tuple[float, float] | None = None
    scaled: bool = True


_CLASSES: Final[Mapping[str, _Class]] = {
    "AutoencoderKL": _Class("block_out_channels", is_gaussian=True, clip=(-30.0, 20.0)),
    "AutoencoderTiny": _Class("encoder_block_out_channels"),
    "AutoencoderDC": _Class("encoder_block_out_channels"),
    "AutoencoderOobleck": _Class(
        "downsampling_ratios", "audio_channels", "NCT", is_gaussian=True, scaled=False
    ),
}


def _number(value: Any) -> bool:
    return schema.is_number(value) and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return schema.is_list(value) and len(value) > 0 and all(map(_number, value))


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _positives(value: Any) -> bool:
    return schema.is_list(value) and len(value) > 0 and all(map(_positive, value))


def _lengths(value: Any) -> bool:
    return _positive(value) or (_positives(value) and len(value) <= 2)


_FORMS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "_class_name": ("a text", lambda value: isinstance(value, str)),
    "scaling_factor": ("a number other than 0", lambda value: _number(value) and value != 0),
    "shift_factor": ("a number", _number),
    "latents_mean": ("a list of numbers", _numbers),
    "latents_std": ("a list of numbers other than 0", lambda v: _numbers(v) and 0 not in v),
    "sample_size": ("a length, or height and width", _lengths),
    "sampling_rate": ("an integer from 1", _positive),
    **{kind.blocks: ("a list of integers from 1", _positives) for kind in _CLASSES.values()},
    **{kind.channels: ("an integer from 1", _positive) for kind in _CLASSES.values()},
}
KEYS: Final = tuple(_FORMS)
"""Those that are read."""


@dataclass(frozen=True)
class VaeConfig:
    """What a config.json holds. A value of null is left out, as diffusers reads it."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> VaeConfig:
        """Raises TrainingError, which names the file and the key."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise TrainingError(f"{path} has more than {_MAX_BYTES} bytes.")
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise TrainingError(f"{path} is not JSON: {error}.") from None
        if not isinstance(document, dict) or "_class_name" not in document:
            raise TrainingError(f"{path} has no _class_name; expected a config of diffusers.")
        values = {key: value for key, value in document.items() if value is not None}
        for key, (expected, accepts) in _FORMS.items():
            if key in values and not accepts(values[key]):
                raise TrainingError(f"{path}: {key} is {values[key]!r}; expected {expected}.")
        return cls(path, values)

    @property
    def class_name(self) -> str:
        """Of diffusers."""
        return str(self.values.get("_class_name", ""))

    @property
    def name(self) -> str:
        """For messages."""
        return f"{FILE} of {self.class_name}"

    @property
    def is_known(self) -> bool:
        """Whether it is clear how pipelines call this class."""
        return self.class_name in _CLASSES

    @property
    def _kind(self) -> _Class:
        return _CLASSES[self.class_name]

    @property
    def posterior(self) -> str:
        """What the class gives, if it is called as pipelines do."""
        return "gaussian" if self._kind.is_gaussian else "point"

    @property
    def axes(self) -> str:
        """The lengths of x, one letter each."""
        return self._kind.layout[2:].lower()

    @property
    def factor(self) -> int | None:
        """Pixels or samples of one position of the latent, along each axis."""
        blocks = self.values.get(self._kind.blocks)
        if blocks is None:
            return None
        return math.prod(blocks) if self.axes == "t" else int(2 ** (len(blocks) - 1))

    def fill(
        self, card: Card, posterior: str | None, free: str, report: Callable[[str], None]
    ) -> Card:
        """The card with what this config and the folders around it say. Raises TrainingError where
        a key that the config answers differs.

        posterior: what the encoder gives, if that is known
        free:      the axes of x that are free
        report:    gets lines on what the config says and leaves open
        """
        for note in self.notes():
            report(note)
        facts = self.facts(posterior)
        if card.mean is not None and "range" in facts:
            raise TrainingError(
                f"The card has mean and std; diffusers gives nets of {self.class_name} the range "
                "[-1, 1]. Leave mean and std out."
            )
        card = card.filled(facts, f"diffusers and the {self.name} say")
        folder = self.path.parent
        card = card.with_defaults({"license": model_files.license(folder, folder.parent)})
        if not self.is_known:
            return card
        # A decoder of a diffusion model is not trained for draws of N(0, I).
        card = card.with_defaults({"prior": NO_PRIOR})
        if card.mean is None:
            card = card.with_defaults({"range": (-1.0, 1.0)})
        sizes = self.sizes([axis for axis in free if axis not in card.sizes])
        if sizes:
            report(
                f"{self.name}: "
                + ", ".join(
                    f"{axis} is {size['min']} to {size['max']}, usually {size['default']}"
                    for axis, size in sizes.items()
                )
                + f", by {'sampling_rate' if self.axes == 't' else 'sample_size'}; [sizes] of the "
                "card can say otherwise"
            )
        return dataclasses.replace(card, sizes={**card.sizes, **sizes})

    def facts(self, posterior: str | None) -> dict[str, Any]:
        """The card's keys that it answers.

        posterior: what the encoder gives, if that is known
        """
        if not self.is_known:
            return {}
        kind = self._kind
        known = {
            "layout": kind.layout,
            "z_layout": kind.layout,
            "channels": self.values.get(kind.channels),
            "sample_rate": self.values.get("sampling_rate"),
            "posterior": posterior,
            "clip_log_var": kind.clip if posterior == "gaussian" else None,
            "range": (-1.0, 1.0) if self.axes == "hw" else None,
        }
        found = {key: value for key, value in known.items() if value is not None}
        return found if self.unclear else found | self._scaling()

    def _scaling(self) -> dict[str, Any]:
        """As pipelines do: (z - shift_factor) * scaling_factor; or, with a mean and a deviation of
        each channel, (z - mean) / std * scaling_factor."""
        if not self._kind.scaled:
            return {"scale": (1.0,), "shift": (0.0,)}
        scale = float(self.values["scaling_factor"])
        if "latents_mean" not in self.values:
            shift = float(self.values.get("shift_factor", 0.0))
            return {"scale": (scale,), "shift": (shift,)}
        return {
            "scale": tuple(scale / std for std in self.values["latents_std"]),
            "shift": tuple(map(float, self.values["latents_mean"])),
        }

    @property
    def unclear(self) -> str:
        """Why the card must give scale and shift; "": it need not."""
        values = self.values
        if not self._kind.scaled:
            return ""
        if "scaling_factor" not in values:
            return "there is no scaling_factor"
        if self.factor not in (1, None) and values["scaling_factor"] == self.factor:
            return (
                f"scaling_factor is {values['scaling_factor']}, the number of pixels of one "
                "position of the latent, which some tools fill in where it was missing"
            )
        mean, std = (len(values.get(f"latents_{name}", ())) for name in ("mean", "std"))
        if mean != std:
            return f"latents_mean has {mean} numbers, and latents_std {std}"
        if mean and values.get("shift_factor"):
            return "there are shift_factor and latents_mean, and pipelines apply one of the two"
        return ""

    def notes(self) -> list[str]:
        """What to tell the owner of it: a line each."""
        if not self.is_known:
            known = ", ".join(_CLASSES)
            return [
                f"{self.name}: how pipelines call it is not known here (of {known} it is), so "
                "the card must say it all"
            ]
        if self.unclear:
            return [f"{self.name}: {self.unclear}, so the card must give scale and shift"]
        scaling = ", ".join(f"{key} {_in_words(value)}" for key, value in self._scaling().items())
        return [f"{self.name}: {scaling}"]

    def sizes(self, axes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Bounds of free axes, where the config tells what rows are usual: images of the size that
        the net was trained on, or a second of audio."""
        if self.factor is None:
            return {}
        if self.axes == "t":
            rate = self.values.get("sampling_rate", 0)
            second = -(-rate // self.factor) * self.factor
            defaults, most = {"t": second}, _SECONDS * rate
        else:
            given = self.values.get("sample_size", 0)
            pair = list(given) if schema.is_list(given) else [given]
            defaults = dict(zip("hw", (pair[0], pair[-1]), strict=True))
            most = min(_MOST, _MOST_POSITIONS * self.factor)
        if not all(n and n % self.factor == 0 for n in defaults.values()):
            return {}
        return {
            axis: {
                "min": min(_LEAST * self.factor, defaults[axis]),
                "max": max(most - most % self.factor, defaults[axis]),
                "default": defaults[axis],
            }
            for axis in axes
        }


def _in_words(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"of {len(numbers)} channels"
