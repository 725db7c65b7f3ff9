"""The settings of a run, checked: the command line, the checkpoint and the manifest share Config.

`settings` declares the fields, and `contradictions` says which exclude each other. None of these
modules imports torch, so `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from latentd.training.contradictions import contradiction
from latentd.training.errors import TrainingError
from latentd.training.settings import Settings


@dataclass(frozen=True)
class Config(Settings):
    """The settings of a run. Raises TrainingError, which names the flag, for a value out of its
    bounds and for settings that contradict each other."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.likelihood == "auto":  # data alone decides it, and everything needs it
            chosen = "categorical" if self.is_text else "gaussian"
            object.__setattr__(self, "likelihood", chosen)
        if self.image_size is not None:
            parse_size(self.image_size)
        if sentence := contradiction(self):
            raise TrainingError(sentence)

    @property
    def sizes(self) -> tuple[int, int]:
        """hidden_size and depth of a resolved config."""
        assert self.hidden_size is not None, "the config is not resolved"
        assert self.depth is not None, "the config is not resolved"
        return self.hidden_size, self.depth

    @property
    def layers(self) -> int:
        """The number of stochastic layers of a resolved config."""
        return self.stochastic_layers or 1

    @property
    def least_std(self) -> float:
        """The least standard deviation of a Gaussian likelihood."""
        # An own deviation for each pixel needs a higher floor: see likelihoods.pixels.Gaussian.
        return self.min_std or (0.002 if self.std == "shared" else 0.2)

    @property
    def least_column_std(self) -> float:
        """The least standard deviation of a column, in units of the column's own."""
        return self.min_std or (0.2 if self.std == "pixel" else 0.01)

    def with_data(self, source: str) -> Config:
        """The same settings for the rows of `source`, in --data's notation. Keeps --image-size only
        for pictures."""
        size = self.image_size if source.startswith("images:") else None
        kept = self if source.startswith("table:") else self._without_column_flags()
        return dataclasses.replace(kept, data=source, image_size=size)

    def _without_column_flags(self) -> Config:
        return dataclasses.replace(
            self, ignore_columns=None, categorical_columns=None, label_column=None
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Config:
        """The inverse of dataclasses.asdict. Raises TrainingError for an unknown key or a wrong
        type, so a typo or a foreign checkpoint never results in a default."""
        unknown = sorted(set(raw) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(f"The configuration has unknown settings: {', '.join(unknown)}.")
        return cls(**raw)


def flag(name: str) -> str:
    """The command-line flag for a field."""
    return "--" + name.replace("_", "-")


def parse_size(text: str) -> tuple[int, int]:
    """'32x48' -> (32, 48): height and width in pixels."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise TrainingError(
            f"--image-size must be HEIGHTxWIDTH in pixels (height x width), such as 32x48; "
            f"got {text!r}."
        )
    return int(match[1]), int(match[2])


_HINTS: Final = get_type_hints(Config)


def value_type(field: dataclasses.Field[Any]) -> type:
    """The type of a field's value: bool, int, float or str."""
    hint = _HINTS[field.name]
    kind: type = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    return kind


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    kind, name = value_type(field), flag(field.name)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TrainingError(f"{name} takes a value of type {kind.__name__}, not {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"{name} must be a finite number, not {value}.")
    rule = field.metadata
    if "min" in rule and value < rule["min"]:
        raise TrainingError(f"{name} must be at least {rule['min']}, not {value}.")
    if "above" in rule and value <= rule["above"]:
        raise TrainingError(f"{name} must be above {rule['above']}, not {value}.")
    if "below" in rule and value >= rule["below"]:
        raise TrainingError(f"{name} must be below {rule['below']}, not {value}.")
    if "choices" in rule and value not in rule["choices"]:
        raise TrainingError(f"{name} is one of {', '.join(rule['choices'])}, not {value!r}.")
