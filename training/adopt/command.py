"""`latentd adopt`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latentd.training.errors import TrainingError

if TYPE_CHECKING:
    from latentd.training.adopt.source import Route

_DESCRIPTION: Final = """\
Take in a model that was trained elsewhere: two ONNX graphs, and a card that says what the graphs do
not. The model is checked, each check is printed, and what passes all of them becomes the next
version of a model: BUNDLES/NAME/VERSION. A model that fails a check is not published, and the exit
status is 1. It needs no PyTorch.
"""
_EXAMPLES: Final = """\
examples:
  latentd adopt --card-template > card.toml      # then edit it
  latentd adopt --onnx vae_encoder/model.onnx vae_decoder/model.onnx --card card.toml \\
      --bundles models --name kl-f8 --images photos

The bundle takes bytes (height, width, channels) and gives bytes, as any other: what converts them
is put into the graphs. Images may be NCHW or NHWC, in floats or bytes; mean and log-variance in one
tensor or in two. Weights in other files are read from the graph's folder only.
"""


class _Template(argparse.Action):
    """Prints the template and ends, whatever else is missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from latentd.training.adopt.card import TEMPLATE

        print(TEMPLATE, end="")
        parser.exit()


def add(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    command = commands.add_parser(
        "adopt",
        help="ONNX graphs of a model trained elsewhere -> bundle",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--card-template", action=_Template, nargs=0, help="print a card.toml to fill in, and end"
    )
    group = command.add_argument_group("where the model is (give one)")
    routes = group.add_mutually_exclusive_group(required=True)
    routes.add_argument(
        "--onnx", nargs=2, type=Path, metavar=("ENCODER", "DECODER"), help="two ONNX graphs"
    )
    routes.add_argument(
        "--model",
        metavar="PKG.MOD:FUNCTION",
        help="a function, in the current folder or installed, that returns an object with "
        "encode(x) and decode(z) in PyTorch. encode returns a tensor, a pair (mean, log_var) or a "
        "distribution; decode returns x",
    )
    command.add_argument(
        "--weights",
        nargs="+",
        default=(),
        metavar="[PART=]FILE",
        help="with --model: state dicts (torch.save) or safetensors files to load into the object, "
        "or into its attribute PART; no code of a file is run",
    )
    command.add_argument("--card", type=Path, help="card.toml: what the model's files do not say")
    command.add_argument("--bundles", type=Path, required=True, help="folder of all models")
    command.add_argument("--name", required=True, help="the model's name in requests")
    command.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="real pictures for the checks, best such as the model was trained on [two photographs "
        "that scikit-learn has]",
    )
    command.set_defaults(run=_adopt, after=lambda _: "Nothing was published.")


def _adopt(arguments: argparse.Namespace) -> None:
    from latentd.training.adopt import adopt

    adopt(
        _route(arguments),
        arguments.card,
        arguments.bundles,
        arguments.name,
        arguments.images,
        lambda line: print(line, flush=True),
    )


def _route(arguments: argparse.Namespace) -> Route:
    from latentd.training.adopt import sources

    if arguments.weights and not arguments.model:
        raise TrainingError("--weights needs --model; leave it out.")
    if arguments.model:
        return sources.model(arguments.model, arguments.weights)
    return sources.onnx(*arguments.onnx)
