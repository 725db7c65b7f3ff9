"""The card of a model that was trained elsewhere: what its files do not say about themselves.

    card = Card.read(Path("card.toml"))     # `latentd adopt --card-template` prints one to fill in

What the files say is compared with the card, and fills in what the card leaves out.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from latentd import schema
from latentd.training.errors import TrainingError

IMAGE_LAYOUTS: Final = ("NCHW", "NHWC")
AUDIO_LAYOUTS: Final = ("NCT", "NTC")
LAYOUTS: Final = IMAGE_LAYOUTS + AUDIO_LAYOUTS
AXES: Final = ("h", "w", "t")
ORDERS: Final = ("RGB", "BGR")
POSTERIORS: Final = ("gaussian", "point")
NO_PRIOR: Final = "none"
PRIORS: Final = ("standard-normal", NO_PRIOR)
TENSORS: Final = ("x", "mean", "log_var", "moments", "z", "decoded_x", "decoded_width")
NO_LIKELIHOOD: Final = "none"
FIXED_WIDTHS: Final = {"gaussian": "std", "laplace": "scale"}
"""Likelihoods that have a width, and the key of it."""
MAX_BYTES: Final = 1 << 20

TEMPLATE: Final = """\
# card.toml: what `latentd adopt` must know of a model, and what its ONNX graphs may not say.
# Leave out what the graphs say: adopt compares, and asks for each key that is missing.
# A line that begins with "# " and a key is optional.

# Where the model comes from, and what its license allows. Both are kept in the bundle.
source = "https://example.com/my-model"
license = "MIT"

# The order of the axes of images: "NCHW" (PyTorch) or "NHWC" (TensorFlow), and the same of latents.
# Of audio: "NCT" or "NTC". Clients have images as height, width, channels, audio as samples,
# channels, and latents with their channels first.
# layout = "NCHW"
# z_layout = "NCHW"

# How many channels x has; of vectors, how many values. Graphs state it. Of a model in PyTorch it is
# asked for only where not exactly one of the usual numbers works.
# channels = 3

# What the net takes for a black and for a white pixel, and gives back: [-1, 1], [0, 1], ... Or, in
# its place, mean and std: the net takes (pixel / 255 - mean) / std, one number or one per channel.
# Leave all three out if the graphs take and give bytes. Vectors have no range; they may have mean
# and std: the net takes (x - mean) / std. So may audio; or range is its lowest and highest value,
# usually [-1, 1], for clients and the net alike.
range = [-1.0, 1.0]
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]

# The order of the net's colors: "RGB" or "BGR". Clients send RGB.
# color_order = "RGB"

# What the encoder gives: "gaussian", a mean and a log-variance, or "point", one latent.
# posterior = "gaussian"

# Where the net's own code limits the log-variance; diffusers: [-30, 20].
# clip_log_var = [-30.0, 20.0]

# Clients get and send z = (z of the net - shift) * scale: one number, or one per channel. The
# graphs rarely apply them; diffusers has them in config.json (scaling_factor, shift_factor).
# Without any: 1.0 and 0.0.
scale = 1.0
shift = 0.0

# "standard-normal" if z of N(0, I), after scale and shift, decodes to new data; otherwise "none".
prior = "none"

# p(x | z), which Score and the percentiles of jobs need; "none": there is none.
# - bernoulli: decoded_x is "logits" or "probabilities" of white; the range must be [0, 1]. Score
#   moves each pixel to black or white; all other scores are cross-entropies of the pixels as sent.
# - gaussian: decoded_x is the mean. std is one number, or what the decoder gives beside the mean,
#   "log_var" or "log_std": the second half of decoded_x's channels, or the tensor decoded_width.
# - laplace: the same with scale, a number or "log_scale".
# A number, and what the decoder gives, are in the net's units, those of range or of mean and std.
# Scores are in nats per row, of pixels from 0 to 1, and of vectors as clients send them. So where
# your own code has n values in a range [low, high], they are its log p(x | z) + n log(high - low).
# likelihood = { name = "gaussian", std = 0.1 }

# Audio only: samples in a second.
# sample_rate = 44100

# The names of the tensors in ONNX graphs, where they are not clear. These may be tensors inside a
# graph: it is cut there. Encoder: x -> moments (mean and log-variance in one tensor, by channels),
# or mean and log_var; a point has mean only. Decoder: z -> decoded_x, and decoded_width.
# [tensors]
# moments = "latent_parameters"

# Height and width, where the graphs leave them free; of audio t, the number of samples.
# multiple_of is measured if it is left out. `h = 64` in place of a table takes that height only.
# [sizes]
# h = { min = 64, max = 1024, default = 256, multiple_of = 8 }
# w = { min = 64, max = 1024, default = 256, multiple_of = 8 }
# t = { min = 4096, max = 2097152, default = 65536 }
"""


def _numbers(count: int | None, expected: str) -> schema.Rule:
    def accepts(value: Any) -> bool:
        if count is None and schema.is_number(value):
            return True
        if not schema.is_list(value) or not all(map(schema.is_number, value)):
            return False
        return len(value) == count if count else len(value) >= 1

    return schema.Rule(expected, accepts)


def _ascending(expected: str) -> schema.Rule:
    pair = _numbers(2, expected)
    return schema.Rule(expected, lambda value: pair.accepts(value) and value[0] < value[1])


_LENGTH: Final = schema.integer(1, 1 << 28)


class _Size:
    """One length, or the bounds of a free axis."""

    expected = "a length, or a table with min, max, default and, if known, multiple_of"
    _bounds = schema.Fields(
        dict.fromkeys(("min", "max", "default"), _LENGTH), {"multiple_of": _LENGTH}, expected
    )

    def check(self, value: Any, key: str = "") -> None:
        """See schema.Check."""
        (_LENGTH if type(value) is int else self._bounds).check(value, key)


def _width(key: str) -> schema.Rule:
    names = ("log_var", "log_std") if key == "std" else ("log_scale",)
    return schema.Rule(
        f"a number above 0, or what the decoder gives: {' or '.join(names)}",
        lambda value: value in names or (schema.is_number(value) and value > 0),
    )


class _Likelihood:
    """ "none", or a table with the name of a density and what it needs."""

    expected = "none, or a table with a name: bernoulli, gaussian or laplace"
    _fields: Final[Mapping[Any, schema.Fields]] = {
        "bernoulli": schema.Fields(
            {
                "name": schema.one_of("bernoulli"),
                "decoded_x": schema.one_of("logits", "probabilities"),
            }
        ),
        **{
            name: schema.Fields({"name": schema.one_of(name), key: _width(key)})
            for name, key in FIXED_WIDTHS.items()
        },
    }

    def check(self, value: Any, key: str = "") -> None:
        """See schema.Check."""
        if value == NO_LIKELIHOOD:
            return
        if not isinstance(value, dict):
            raise schema.Invalid(
                f"{key} is {schema.format_value(value)}; expected {self.expected}."
            )
        schema.one_of(*self._fields).check(value.get("name"), f"{key}.name")
        self._fields[value["name"]].check(value, key)


_CHANNELS: Final = _numbers(None, "a finite number, or a list with one for each channel")
_KEYS: Final[Mapping[str, schema.Check]] = {
    "layout": schema.one_of(*LAYOUTS),
    "z_layout": schema.one_of(*LAYOUTS),
    "channels": schema.integer(1, 1 << 28),
    "range": _ascending("two ascending numbers, as in [-1, 1]"),
    "mean": _CHANNELS,
    "std": _CHANNELS,
    "color_order": schema.one_of(*ORDERS),
    "posterior": schema.one_of(*POSTERIORS),
    "clip_log_var": _ascending("two ascending numbers, as in [-30, 20]"),
    "scale": _CHANNELS,
    "shift": _CHANNELS,
    "prior": schema.one_of(*PRIORS),
    "likelihood": _Likelihood(),
    "license": schema.text(1000),
    "source": schema.text(1000),
    "tensors": schema.Fields({}, dict.fromkeys(TENSORS, schema.text(1000))),
    "sample_rate": schema.integer(1, 1 << 24),
    "sizes": schema.Fields({}, dict.fromkeys(AXES, _Size())),
}


@dataclass(frozen=True)
class Card:
    """A card's keys, as TEMPLATE explains them. None: the card does not say."""

    layout: str | None = None
    z_layout: str | None = None
    channels: int | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color_order: str = "RGB"
    posterior: str | None = None
    clip_log_var: tuple[float, float] | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    prior: str | None = None
    likelihood: str | Mapping[str, Any] | None = None
    license: str | None = None
    source: str | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    sample_rate: int | None = None
    sizes: Mapping[str, int | Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read card.toml. Raises TrainingError, which names the key."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise TrainingError(f"The card {path} has more than {MAX_BYTES} bytes.")
            document = tomllib.loads(path.read_bytes().decode())
        except OSError as error:
            raise TrainingError(f"The card {path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise TrainingError(f"The card {path} is not TOML in UTF-8: {error}.") from None
        except RecursionError:
            raise TrainingError(f"The card {path} has too many lists inside lists.") from None
        return cls.of(document, str(path))

    @classmethod
    def of(cls, document: Mapping[str, Any], name: str = "card") -> Card:
        """From the keys of card.toml. Raises TrainingError, which names the key.

        name: what messages call the card
        """
        try:
            schema.Fields({}, _KEYS).check(dict(document))
            _check(document)
        except schema.Invalid as error:
            raise TrainingError(f"{name}: {error}") from None
        values: dict[str, Any] = {
            key: _floats(value) if key in _FLOATS else value for key, value in document.items()
        }
        return cls(**values)

    @property
    def is_channels_last(self) -> bool:
        """Of x, as the net has it."""
        return self.layout is not None and self.layout.endswith("C")

    @property
    def is_z_channels_last(self) -> bool:
        """Of z, as the net has it."""
        return self.z_layout is not None and self.z_layout.endswith("C")

    def document(self) -> dict[str, Any]:
        """The keys that it has, as JSON can have them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: value for key, value in values.items() if value not in (None, {})}

    def filled(self, found: Mapping[str, Any], where: str) -> Card:
        """The card with what was found elsewhere. Raises TrainingError where the two differ.

        where: what says so, and its verb, for messages: "the graphs say"
        """
        for key, value in found.items():
            own = getattr(self, key)
            if own not in (None, value):
                raise TrainingError(
                    f"The card says {key} = {own!r}; {where} {value!r}. Correct the card, or "
                    "leave the key out."
                )
        return dataclasses.replace(self, **found)

    def with_defaults(self, found: Mapping[str, Any]) -> Card:
        """The card with what was found elsewhere, where it does not say itself."""
        new = {key: value for key, value in found.items() if getattr(self, key) is None}
        return dataclasses.replace(self, **new)


_FLOATS: Final = ("range", "mean", "std", "clip_log_var", "scale", "shift")


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if schema.is_list(value) else (float(value),)


def _check(document: Mapping[str, Any]) -> None:
    """The rules that hold between keys, and for numbers that divide."""
    if ("mean" in document) != ("std" in document):
        raise schema.Invalid("mean and std need each other; give both, or neither.")
    if "range" in document and "mean" in document:
        raise schema.Invalid("range and mean say the same in two ways; give one of them.")
    for key in ("std", "scale"):
        if key in document and 0.0 in _floats(document[key]):
            raise schema.Invalid(f"{key} is {document[key]}; expected numbers other than 0.")
    tensors = document.get("tensors", {})
    if "moments" in tensors and {"mean", "log_var"} & tensors.keys():
        raise schema.Invalid(
            "tensors has moments, and mean or log_var; give moments if both are in one tensor, "
            "otherwise the two others."
        )
    if "decoded_width" in tensors and "decoded_x" not in tensors:
        raise schema.Invalid("tensors has decoded_width without decoded_x, the mean; give both.")
    for axis, size in document.get("sizes", {}).items():
        if type(size) is int:
            continue
        low, high, default = size["min"], size["max"], size["default"]
        if not low <= default <= high:
            raise schema.Invalid(f"sizes.{axis}.default is {default}; expected {low} to {high}.")
