"""The settings of a run as flags of the command line, both ways.

It does not import torch, so `--help` is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any

from latentd.training.config import Config, flag, value_type


def add_flags(parser: argparse.ArgumentParser, hidden_fields: Collection[str] = ()) -> None:
    """Add one flag for each field of Config. A flag that is not given is not in the namespace.

    hidden_fields: fields missing from --help, for commands that reject them with a reason.
    """
    for field in dataclasses.fields(Config):
        default = "" if field.default in (None, False) else f" [{field.default}]"
        choices = field.metadata.get("choices")
        kind = value_type(field)
        text = field.metadata["help"].replace("%", "%%") + default
        common: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": argparse.SUPPRESS if field.name in hidden_fields else text,
        }
        if kind is bool:
            parser.add_argument(flag(field.name), action="store_true", **common)
        else:
            metavar = None if choices else kind.__name__.upper()
            parser.add_argument(
                flag(field.name), type=kind, choices=choices, metavar=metavar, **common
            )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings whose flags were given, by their names in Config."""
    return {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Config)
        if hasattr(arguments, field.name)
    }


def to_flags(config: Config) -> list[str]:
    """The words of a command line that give this config. --data is always among them, other
    settings only if they differ from their defaults."""
    words, default = [], Config(data=config.data)
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value is True:
            words.append(flag(field.name))
        elif value != getattr(default, field.name) or field.name == "data":
            words += [flag(field.name), str(value)]
    return words


def add_threshold(command: argparse.ArgumentParser) -> None:
    """Add the flag of `export` and `adopt` that chooses which rows are outliers."""
    command.add_argument(
        "--threshold-percentile",
        type=float,
        metavar="PERCENT",
        help="keep a threshold in the bundle: a row is an outlier if its reconstruction error, "
        "-log p(x|z), exceeds those of so many percent of the training rows, such as 99 (at least "
        "50). Responses with scores then tell it; a call may name a threshold of its own [none]",
    )
