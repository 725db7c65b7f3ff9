"""The `latentd` command: serve bundles, and call a server from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from serving import __version__

# Parsers alone: what a command needs it imports when it runs, so that `latentd client` needs
# neither onnxruntime nor prometheus-client.
from serving.console.parser import add_client_parser
from serving.jobs.parser import add_reconstruct_parser
from serving.process.parser import add_plan_parser, add_serve_parser
from serving.transport.tokens import add_token_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="latentd",
        description="Serve variational autoencoders over gRPC, and call such a server.",
        epilog="First run: python -m serving serve --bundles models, then, in another shell: "
        "python -m serving client sample --count 16 --seed 7 --out grid.png",
    )
    parser.add_argument("--version", action="version", version=f"latentd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    add_serve_parser(commands)
    add_token_parser(commands)
    add_plan_parser(commands)
    add_client_parser(commands)
    add_reconstruct_parser(commands)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
