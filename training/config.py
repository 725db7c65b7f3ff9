"""The settings of a run, checked: the command line, the checkpoint and the manifest share Config.

`settings` declares the fields. Neither module imports torch, so `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from latentd.training.errors import TrainingError
from latentd.training.settings import Settings

CONVOLUTIONAL: Final = ("resnet", "ladder")
"""The architectures for images. The others but gru flatten every row."""


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
            if not self.data.startswith("images:"):
                raise TrainingError("--image-size resizes images:DIR only; leave it out.")
        for unwanted, sentence in (
            (
                self.binarization != "none" and self.likelihood != "bernoulli",
                f"--binarization {self.binarization} draws black or white pixels, which only "
                "--likelihood bernoulli describes; use that, or --binarization none.",
            ),
            (
                self.fixed_std is not None and self.likelihood != "gaussian",
                "--fixed-std is of --likelihood gaussian; leave it out.",
            ),
            (
                self.std != "auto" and self.likelihood != "gaussian",
                "--std is of --likelihood gaussian; leave it out.",
            ),
            (
                self.std == "shared" and self.fixed_std is not None,
                "--std shared learns the standard deviation that --fixed-std gives; leave out one.",
            ),
            (
                self.model == "ae" and self._changes_the_kl(),
                "--model ae has no KL and samples no z. Leave out --importance-samples, --beta, "
                "--kl-warmup-epochs, --kl-cycles and --free-bits.",
            ),
            (
                self.importance_samples > 1 and self._changes_the_kl(but="importance_samples"),
                "--importance-samples above 1 trains the importance-weighted bound, which has no "
                "KL term to weight. Leave out --beta, --kl-warmup-epochs, --kl-cycles and "
                "--free-bits.",
            ),
            (
                self.kl_warmup_epochs > 0 and self.kl_cycles > 0,
                "--kl-warmup-epochs raises the KL's weight once and --kl-cycles several times; "
                "choose one.",
            ),
            (
                self.latents == "spatial" and not self._may_be_convolutional,
                "--latents spatial needs --architecture resnet or ladder, not "
                f"{self.architecture}.",
            ),
            (
                (self.attention or self.blocks > 1) and not self._may_be_convolutional,
                "--attention and --blocks are of --architecture resnet and ladder, not "
                f"{self.architecture}; leave them out.",
            ),
            (
                (self.stochastic_layers or 1) > 1 and self.architecture != "ladder",
                "--stochastic-layers above 1 is of --architecture ladder; use that, or leave it "
                "out.",
            ),
            (
                self.linear_path == "pca"
                and not (self._may_be_convolutional and self.latents == "flat"),
                "--linear-path pca is of --architecture resnet or ladder with --latents flat; "
                "leave it out.",
            ),
            (
                not self.is_text
                and (self.text_length or self.long_texts != "fail" or self.keep_repeated),
                "--text-length, --long-texts and --keep-repeated are of --data text:FILE; leave "
                "them out.",
            ),
            (
                self.is_text and self.architecture not in ("auto", "gru"),
                f"--architecture {self.architecture} does not read text; use gru.",
            ),
            (
                not self.is_text and (self.architecture == "gru" or self.token_dropout > 0),
                "--architecture gru and --token-dropout are for --data text:FILE; leave them out.",
            ),
            (
                not self.is_table
                and bool(self.ignore_columns or self.categorical_columns or self.label_column),
                "--ignore-columns, --categorical-columns and --label-column are of --data "
                "table:FILE; leave them out.",
            ),
            (
                not self._may_have_columns and self.missing != "fail",
                "--missing is of --data table:FILE and npz:FILE; leave it out.",
            ),
            (
                self.is_table and self.architecture not in ("auto", "mlp", "iwae", "gated"),
                f"--architecture {self.architecture} does not read tables; use mlp, iwae or gated.",
            ),
            (
                self.is_table and self.likelihood != "gaussian",
                f"--likelihood {self.likelihood} is not one of tables: numeric columns have a "
                "gaussian and categorical ones a categorical one; leave it out.",
            ),
            (
                self.std == "column" and not self._may_have_columns,
                "--std column is of --data table:FILE and npz:FILE; leave it out.",
            ),
            (
                self.is_text != (self.likelihood == "categorical"),
                "--likelihood categorical is that of --data text:FILE, and text has no other; "
                "leave --likelihood out.",
            ),
            (
                self.is_text and (self.depth or 1) > 1,
                "--architecture gru has one layer each way; leave --depth out.",
            ),
        ):
            if unwanted:
                raise TrainingError(sentence)

    @property
    def is_text(self) -> bool:
        """Whether rows are texts."""
        return self.data.startswith("text:")

    @property
    def is_table(self) -> bool:
        """Whether rows are those of a table."""
        return self.data.startswith("table:")

    @property
    def _may_have_columns(self) -> bool:
        """Whether rows may be in units of their own: an array shows it when it is read."""
        return self.data.startswith(("table:", "npz:"))

    @property
    def _may_be_convolutional(self) -> bool:
        return not (self.is_text or self.is_table) and self.architecture in ("auto", *CONVOLUTIONAL)

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
        # An own deviation for each pixel needs a higher floor: see likelihoods.Gaussian.
        return self.min_std or (0.002 if self.std == "shared" else 0.2)

    @property
    def least_column_std(self) -> float:
        """The least standard deviation of a column, in units of the column's own."""
        return self.min_std or (0.2 if self.std == "pixel" else 0.01)

    def _changes_the_kl(self, but: str = "") -> bool:
        names = {"importance_samples", "beta", "kl_warmup_epochs", "kl_cycles", "free_bits"} - {but}
        return any(
            getattr(self, f.name) != f.default for f in dataclasses.fields(self) if f.name in names
        )

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
