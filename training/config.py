"""One frozen dataclass of settings: the command line, the checkpoint and the manifest all hold it.

Each field is spelled once: its line gives the default, what `--help` says and the values allowed.
No torch here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from training.errors import TrainingError


def _setting(default: Any, teaches: str, **allowed: Any) -> Any:
    """A field. allowed: choices, or bounds: least (inclusive), above and below (exclusive)."""
    return dataclasses.field(default=default, metadata={"help": teaches, **allowed})


@dataclass(frozen=True)
class Config:
    """What a run is made of. A value out of its bounds raises TrainingError that names the flag."""

    data: str = _setting("digits", "rows: digits, idx:DIR, npz:FILE or images:DIR")
    image_size: str | None = _setting(None, "HEIGHTxWIDTH, pixels: resize images:DIR to this")
    validation: float = _setting(
        0.1, "fraction of the training rows held out to choose best.pt", above=0, below=1
    )
    test: float = _setting(
        0.1, "fraction of the rows held out, if the source has no test rows", above=0, below=1
    )
    model: str = _setting(
        "vae", "vae, or ae: the same net, a point for a code, no KL", choices=("vae", "ae")
    )
    net: str = _setting(
        "auto",
        "auto: conv for images whose shorter side has 28 pixels or more, else mlp",
        choices=("auto", "mlp", "conv"),
    )
    latent_size: int = _setting(16, "numbers in the latent vector z", least=1, below=1 << 16)
    hidden: int | None = _setting(
        None, "mlp: units in a layer [256]; conv: channels at the coarsest level [64]", least=1
    )
    depth: int | None = _setting(
        None, "mlp: hidden layers [2]; conv: halvings of the image [2]", least=1, below=65
    )
    likelihood: str = _setting(
        "gaussian", "p(x|z), independent for each pixel", choices=("gaussian", "bernoulli")
    )
    least_std: float = _setting(
        0.2, "gaussian: least standard deviation, of x scaled to [0, 1]", above=0
    )
    binarisation: str = _setting(
        "none",
        "bernoulli: none, grey pixels as they are (their cross-entropy is no likelihood); "
        "dynamic, black or white drawn anew in each pass with probability x",
        choices=("none", "dynamic"),
    )
    epochs: int = _setting(200, "passes over the training rows", least=1)
    batch_size: int = _setting(128, "rows in a step", least=1)
    learning_rate: float = _setting(2e-3, "Adam's step size", above=0)
    max_gradient_norm: float = _setting(
        200.0, "clip the L2 norm of the gradient, of nats per example, to this", above=0
    )
    seed: int = _setting(
        0, "decides the split, the weights, the order and every draw", least=0, below=1 << 63
    )
    device: str = _setting("auto", "auto: cuda if there, else cpu", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.image_size is not None:
            parse_size(self.image_size)
            if not self.data.startswith("images:"):
                raise TrainingError("--image-size resizes images:DIR only; leave it out.")
        if self.binarisation == "dynamic" and self.likelihood != "bernoulli":
            raise TrainingError(
                "--binarisation dynamic draws black or white pixels, which only "
                "--likelihood bernoulli describes; use that, or --binarisation none."
            )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Config:
        """The inverse of dataclasses.asdict. Raises TrainingError for an unknown key or a wrong
        type, so that a typo or a foreign checkpoint never passes for a default."""
        unknown = sorted(set(raw) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(f"The configuration has unknown settings: {', '.join(unknown)}.")
        return cls(**raw)


def flag(name: str) -> str:
    """The command line's spelling of a field's name."""
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Derive one flag from each field of Config. A flag not given stays out of the namespace."""
    for field in dataclasses.fields(Config):
        shown = "" if field.default is None else f" [{field.default}]"
        choices = field.metadata.get("choices")
        kind = _type(field)
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            type=kind,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            default=argparse.SUPPRESS,
            help=field.metadata["help"].replace("%", "%%") + shown,
        )


def parse_size(text: str) -> tuple[int, int]:
    """'32x48' -> (32, 48): height and width in pixels."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise TrainingError(f"--image-size is HEIGHTxWIDTH in pixels, such as 32x48, not {text!r}.")
    return int(match[1]), int(match[2])


_HINTS: Final = get_type_hints(Config)


def _type(field: dataclasses.Field[Any]) -> type:
    """int, float or str: the type of a value that is given."""
    hint = _HINTS[field.name]
    kind: type = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    return kind


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    kind, name = _type(field), flag(field.name)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TrainingError(f"{name} takes a value of type {kind.__name__}, not {value!r}.")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise TrainingError(f"{name} must be a finite number, not {value}.")
    rule = field.metadata
    if "least" in rule and value < rule["least"]:
        raise TrainingError(f"{name} must be at least {rule['least']}, not {value}.")
    if "above" in rule and value <= rule["above"]:
        raise TrainingError(f"{name} must be above {rule['above']}, not {value}.")
    if "below" in rule and value >= rule["below"]:
        raise TrainingError(f"{name} must be below {rule['below']}, not {value}.")
    if "choices" in rule and value not in rule["choices"]:
        raise TrainingError(f"{name} is one of {', '.join(rule['choices'])}, not {value!r}.")
