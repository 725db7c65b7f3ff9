"""Which settings are searched, and between which values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from latentd.training import networks
from latentd.training.config import Config, flag, value_type
from latentd.training.errors import TrainingError

_REFUSED: Final = {
    "it decides which rows the ELBO is measured on, and trials are compared by it": (
        *("data", "image_size", "color", "bad_images", "val_fraction", "test_fraction"),
        *("text_length", "long_texts", "keep_repeated"),
        *("missing", "ignore_columns", "categorical_columns", "label_column"),
        *("binarization", "binarization_seed", "seed"),
    ),
    "it decides what the ELBO is measured of, and trials are compared by it": (
        *("likelihood", "std", "min_std", "fixed_std", "model"),
    ),
    "it trains another bound than the ELBO that trials are compared by": ("importance_samples",),
    "trials are compared epoch by epoch": ("epochs", "patience", "validate_every"),
    "it changes how a model trains, not the model": (
        *("checkpoint_seconds", "tracker", "device", "threads", "precision", "compile"),
    ),
}
"""Why a setting cannot be searched. It can be fixed by its own flag."""

_FIELDS: Final = {field.name: field for field in dataclasses.fields(Config)}
_DIGITS: Final = 3  # of a searched float: more make no difference, and commands are read

Value = bool | int | float | str


@dataclass(frozen=True)
class Space:
    """The searched settings, with the values that each may take."""

    distributions: Mapping[str, BaseDistribution]
    start: Mapping[str, Any] | None  # what `latentd train` would use; None: not within the space

    def settings(self, config: Config, values: Mapping[str, Any]) -> Config:
        """The config of a trial. values: what the sampler chose."""
        chosen = {name: _rounded(values[name], self.distributions[name]) for name in values}
        return dataclasses.replace(config, **chosen)

    def words(self) -> dict[str, str]:
        """Each searched setting in the notation of --search."""
        return {name: _words(found) for name, found in self.distributions.items()}


def space(
    config: Config,
    given: Collection[str],
    wanted: Iterable[str],
    shape: tuple[int, ...],
    columns: bool = False,
) -> Space:
    """What a search changes: the usual settings but for those in `given`, and `wanted`.

    given: settings with a flag of their own. wanted: the texts of --search. shape: of a row.
    columns: as networks.resolve_architecture takes it. Raises TrainingError.
    """
    found: dict[str, BaseDistribution] = {}
    for text in wanted:
        name, distribution = _parse(text, config)
        if name in found:
            raise TrainingError(f"--search {text}: {name} is searched twice.")
        if name in given:
            raise TrainingError(
                f"--search {text}: {flag(name)} fixes it. Leave one of the two out."
            )
        found[name] = distribution
    usual = {
        name: _parse(f"{name}={text}", config)[1]
        for name, text in _usual(config, shape, columns).items()
        if name not in given
    }
    if not (usual | found):
        raise TrainingError("Every setting is fixed by a flag, so there is nothing to search.")
    searched = usual | found
    resolved = networks.resolve_architecture(config, shape, columns)
    start = {name: getattr(resolved, name) for name in searched}
    inside = all(_contains(searched[name], value) for name, value in start.items())
    return Space(searched, start if inside else None)


def check(config: Config, wanted: Iterable[str]) -> None:
    """Raise TrainingError if a text of --search is wrong. Needs no data."""
    for text in wanted:
        _parse(text, config)


def _usual(config: Config, shape: tuple[int, ...], columns: bool) -> dict[str, str]:
    """What is searched unless flags say otherwise, in the notation of --search."""
    resolved = networks.resolve_architecture(config, shape, columns)
    width, _ = resolved.sizes
    values = math.prod(shape)
    least, most = (2, 16) if config.latents == "spatial" else (4, 64)
    ranges = {
        "latent_size": _latent_sizes(
            min(least, values), min(most, values), networks.latent_multiple(resolved)
        ),
        "hidden_size": f"{max(1, width // 4)}:{2 * width}:log",
        "learning_rate": "0.0003:0.01:log",
    }
    # The importance-weighted bound has no KL to weight.
    return ranges | ({"beta": "0.5:2:log"} if config.importance_samples == 1 else {})


def _latent_sizes(least: int, most: int, multiple: int) -> str:
    """The sizes between two bounds, in the notation of --search."""
    if multiple == 1:
        return f"{least}:{most}:log"
    # Optuna has no range of multiples on a log scale.
    low = -(-least // multiple) * multiple
    sizes = [low << n for n in range(most.bit_length()) if low << n <= most]
    # A single one is a range, because a choice has several.
    return ",".join(map(str, sizes)) if len(sizes) > 1 else f"{low}:{low}"


def _parse(text: str, config: Config) -> tuple[str, BaseDistribution]:
    """'latent-size=4:64:log' or 'batch-size=64,128' as a setting and its values."""
    name, equals, values = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    if not equals or name not in _FIELDS:
        raise TrainingError(
            f"--search {text}: write NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C, where NAME is "
            "a setting of `latentd train`, such as learning-rate=0.0001:0.01:log."
        )
    for reason, names in _REFUSED.items():
        if name in names:
            raise TrainingError(f"--search {text}: {reason}. Fix it with {flag(name)} instead.")
    distribution = _choices(text, name, values) if ":" not in values else _range(text, name, values)
    for value in _ends(distribution):
        setting: dict[str, Any] = {name: value}
        try:
            dataclasses.replace(config, **setting)
        except TrainingError as error:
            raise TrainingError(f"--search {text}: {error}") from None
    return name, distribution


def _range(text: str, name: str, values: str) -> BaseDistribution:
    kind = value_type(_FIELDS[name])
    low_text, _, rest = values.partition(":")
    high_text, colon, scale = rest.partition(":")
    if kind not in (int, float) or (colon and scale != "log"):
        raise TrainingError(
            f"--search {text}: write LOW:HIGH or LOW:HIGH:log for numbers, and A,B,C for others."
        )
    low, high = (_value(text, kind, number) for number in (low_text, high_text))
    assert isinstance(low, int | float), "a number"
    assert isinstance(high, int | float), "a number"
    if not low <= high:
        raise TrainingError(f"--search {text}: {low} is more than {high}.")
    if colon and low <= 0:
        raise TrainingError(f"--search {text}: a log scale begins above 0; leave :log out.")
    if kind is int:
        return IntDistribution(int(low), int(high), log=bool(colon))
    return FloatDistribution(low, high, log=bool(colon))


def _choices(text: str, name: str, values: str) -> BaseDistribution:
    kind = value_type(_FIELDS[name])
    found = [_value(text, kind, value) for value in values.split(",")]
    if len(found) < 2:
        raise TrainingError(
            f"--search {text}: that is one value. Fix it with {flag(name)}, or give several."
        )
    if len(set(found)) < len(found):
        raise TrainingError(f"--search {text}: a value is given twice.")
    return CategoricalDistribution(found)


def _value(text: str, kind: type, value: str) -> Value:
    if kind is bool:
        if value in ("true", "false"):
            return value == "true"
        raise TrainingError(f"--search {text}: {value!r} is neither true nor false.")
    try:
        return kind(value)  # type: ignore[no-any-return]
    except ValueError:
        raise TrainingError(f"--search {text}: {value!r} is not of type {kind.__name__}.") from None


def _ends(distribution: BaseDistribution) -> tuple[Value, ...]:
    """Values that must all be valid."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)  # type: ignore[arg-type]
    assert isinstance(distribution, IntDistribution | FloatDistribution), "no other is made here"
    return (distribution.low, distribution.high)


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(str(choice) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution), "no other is made here"
    return f"{distribution.low}:{distribution.high}" + ":log" * distribution.log


def _contains(distribution: BaseDistribution, value: Value | None) -> bool:
    ends = _ends(distribution)
    if isinstance(distribution, CategoricalDistribution):
        return value in ends
    return isinstance(value, int | float) and ends[0] <= value <= ends[1]  # type: ignore[operator]


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    return min(max(rounded, distribution.low), distribution.high)
