"""Runs the `latentd` command: train, export and serve models, and call a server from the shell."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from latentd import __version__

# Only parsers: a command imports what it needs when it runs, so that `latentd client` needs
# neither onnxruntime nor prometheus-client.
from latentd.console.bundle_command import add_bundle_parser
from latentd.console.parser import add_client_parser
from latentd.errors import EXIT_CONFIG
from latentd.explorer.command import add_explore_parser
from latentd.flags import Parser
from latentd.jobs.parser import add_batch_parser
from latentd.process.cli import add_plan_parser, add_serve_parser
from latentd.transport.parser import add_token_parser

TRAINING: Final = {
    "train": "train a VAE on your data: checkpoints, pictures, log",
    "tune": "search for the best settings on your data",
    "evaluate": "measure a trained model: likelihood, latent space, samples",
    "compare": "train a VAE and an autoencoder, and test what VAEs are for",
    "runs": "list the runs below a folder, with their figures",
    "compare-runs": "say what differs between runs that were trained before",
    "export": "publish a checkpoint as the next version of a bundle",
    "adopt": "publish a model that was trained elsewhere, after checks",
}
"""The commands of latentd.training; their parsers are imported only for one of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as stderr does: file names may not be UTF-8
    if words and words[0] in TRAINING:
        return int(importlib.import_module("latentd.training.__main__").main(words))
    parser = _parser()
    args = parser.parse_args(words)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "latentd"):
            raise  # a fault of this program
        print(
            f"latentd: this command needs the package {package}, which is not installed. "
            f"Run: pip install 'latentd[{args.extra}]'",
            file=sys.stderr,
        )
        return EXIT_CONFIG


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="latentd",
        description="Train a variational autoencoder, export it, serve it over gRPC, and call it.",
        epilog="First run: latentd train --data digits --out runs/digits; latentd export "
        "--checkpoint runs/digits/best.pt --bundles models --name digits; latentd serve; then, in "
        "another shell: latentd client sample --count 16 --seed 7 --out grid.png",
    )
    parser.add_argument("--version", action="version", version=f"latentd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text)  # listed here, parsed by latentd.training
    add_bundle_parser(commands)
    add_serve_parser(commands)
    add_client_parser(commands)
    add_explore_parser(commands)
    add_batch_parser(commands)
    add_plan_parser(commands)
    add_token_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
