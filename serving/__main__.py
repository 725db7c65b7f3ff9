"""The `latentd` command: serve bundles, and call a server from the shell."""

from __future__ import annotations

import argparse
import difflib
import io
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from serving import __version__

# Parsers alone: what a command needs it imports when it runs, so that `latentd client` needs
# neither onnxruntime nor prometheus-client.
from serving.console.parser import add_client_parser
from serving.errors import EXIT_CONFIG
from serving.jobs.parser import add_reconstruct_parser
from serving.process.parser import add_plan_parser, add_serve_parser
from serving.transport.tokens import add_token_parser


class Parser(argparse.ArgumentParser):
    """argparse's, for a command and all below it, but no flag is taken for another.

    A shortened or misspelled flag is an error that names the nearest flag there is.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but unknown flags come before what then seems to be missing."""
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # else most of them are a subcommand's, which looks itself
            for word in itertools.takewhile(lambda word: word != "--", words):
                self._check(word.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def _check(self, flag: str) -> None:
        flags = self._option_string_actions
        if not flag.startswith("--") or " " in flag or flag in flags:
            return
        longer = [known for known in flags if known.startswith(flag)]
        nearest = [*longer, *difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)]
        hint = f"Did you mean {nearest[0]}?" if nearest else f"See {self.prog} --help."
        self.exit(2, f"{self.prog}: there is no flag {flag}. {hint}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may not be UTF-8
    parser: argparse.ArgumentParser = Parser(
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
    try:
        return int(args.run(args))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "serving"):
            raise  # a fault of ours
        print(
            f"latentd: the package {package} is not installed, which this command needs. "
            f"pip install 'latentd[{args.extra}]' brings it.",
            file=sys.stderr,
        )
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
