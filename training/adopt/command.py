"""`latentd adopt`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latentd.training import signals
from latentd.training.config_flags import add_threshold
from latentd.training.errors import TrainingError

if TYPE_CHECKING:
    from latentd.training.adopt.source import Route

_DESCRIPTION: Final = """\
Take in a model that was trained elsewhere, with a card that says what its files do not. The model
is checked, each check is printed, and what passes all of them becomes the next version of a model:
BUNDLES/NAME/VERSION. A model that fails a check is not published, and the exit status is 1.

pip install 'latentd[adopt]' suffices for --onnx and --optimum; it brings no PyTorch. --model needs
'latentd[train]', and --diffusers 'latentd[diffusers]'.
"""
_EXAMPLES: Final = """\
examples:
  latentd adopt --card-template > card.toml      # then edit it
  latentd adopt --onnx encoder.onnx decoder.onnx --card card.toml --bundles models \\
      --name kl-f8 --images photos
  latentd adopt --optimum exported --card card.toml --bundles models --name kl-f8
  latentd adopt --diffusers saved/vae --card card.toml --bundles models --name kl-f8
  latentd adopt --model my_package.vae:make --weights last.ckpt --card card.toml \
      --bundles models --name mine

The bundle takes bytes (height, width, channels) and gives bytes, as any other: what converts them
is put into the graphs. Images may be NCHW or NHWC, in floats or bytes; mean and log-variance in one
tensor or in two. Weights in other files are read from the graph's folder only.

--model calls a function without arguments; modules in the current folder can be imported. What it
returns needs encode(x) and decode(z), and no base class. encode may return one tensor (a point, or
mean and log-variance by channels), a pair (mean, log_var), a Normal distribution, or an object with
latent_dist, latents, or mean and logvar; decode a tensor, or an object with sample. Both are used
in evaluation mode, and exported with free axes where the card's sizes are free. --weights reads
state dicts, also inside a checkpoint and with a prefix; names that are missing or too many are an
error. `encoder=FILE decoder=OTHER` loads two parts.

--expected names an .npz file with arrays as clients send and get them: x and mean (and log_var), or
z and decoded_x, or all. Images are bytes (rows, height, width, channels), latents floats with the
channels first, after scale and shift; x of vectors and of audio is floats. With PyTorch:
  pixels = ...                                   # uint8 (rows, height, width, 3)
  x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1            # for a range of [-1, 1]
  mean = (vae.encode(x).latent_dist.mean - shift) * scale
  numpy.savez("expected.npz", x=pixels, mean=mean.numpy())
Rows of a second size have a word and a dot before their names: wide.x, wide.mean.
"""

_EXTRAS: Final = {
    "onnx": "adopt",
    "optimum": "adopt",
    "diffusers": "diffusers",
    "model": "train",
}
"""What pip must install for each flag that says where the model is."""


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
        help="a model trained elsewhere, in ONNX or PyTorch -> bundle",
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
        "--optimum",
        type=Path,
        metavar="DIR",
        help="a folder that optimum-cli exported: vae_encoder and vae_decoder, each with "
        "model.onnx and config.json",
    )
    routes.add_argument(
        "--diffusers",
        type=Path,
        metavar="DIR",
        help="a folder that save_pretrained of diffusers wrote, in safetensors: an AutoencoderKL, "
        "AutoencoderTiny or AutoencoderOobleck, or a pipeline that has one",
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
    command.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="real rows in a .npy or .npz file, as clients send them, best those of training: for "
        "the checks, and with 100 or more for the percentiles of scores, which need a likelihood",
    )
    command.add_argument(
        "--expected",
        type=Path,
        metavar="NPZ",
        help="inputs of yours, and what your model gives for them (below)",
    )
    add_threshold(command)
    command.set_defaults(run=_adopt, after=lambda _: "Nothing was published.")


def _adopt(arguments: argparse.Namespace) -> None:
    route = next(name for name in _EXTRAS if getattr(arguments, name))
    arguments.extra = _EXTRAS[route]
    with signals.raising_sigterm():
        from latentd.training.adopt import adopt

        adopt(
            _route(arguments),
            arguments.card,
            arguments.bundles,
            arguments.name,
            arguments.images,
            arguments.expected,
            arguments.rows,
            arguments.threshold_percentile,
            lambda line: print(line, flush=True),
        )


def _route(arguments: argparse.Namespace) -> Route:
    from latentd.training.adopt import sources

    if arguments.weights and not arguments.model:
        raise TrainingError("--weights needs --model; leave it out.")
    if arguments.model:
        return sources.model(arguments.model, arguments.weights)
    if arguments.diffusers:
        return sources.diffusers(arguments.diffusers)
    if arguments.optimum:
        return sources.optimum(arguments.optimum)
    return sources.onnx(*arguments.onnx)
