"""`latentd token`: a fresh bearer token for a caller, and the line that grants it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serving.errors import ConfigError
from serving.transport import access


def add_token_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `token`; it sets `run`, which takes the arguments and gives the exit status."""
    parser = commands.add_parser(
        "token",
        help="make a bearer token for a caller",
        description="Print a fresh token to standard output, and to standard error the line that "
        "grants it, for the file that serve --tokens reads. The token is kept nowhere else.",
        epilog="Example: python -m serving token batch-jobs --scopes infer,models "
        "> token 2>> tokens.txt",
    )
    parser.add_argument("name", help="whose token it is, for log and error messages")
    parser.add_argument(
        "--scopes",
        default=",".join(access.SCOPES),
        help="what it is for: models (GetModel, ListModels), generate (Sample, StreamSamples, "
        "Decode, Interpolate), infer (Encode, Reconstruct, StreamReconstruct, Score). Default: all",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    token, line = access.new_token(args.name, args.scopes.split(","))
    try:
        access.read(line, Path(args.name))
    except ConfigError as error:
        print(f"latentd: {str(error).partition(': ')[2]}", file=sys.stderr)
        return 2
    print(line, file=sys.stderr)
    print(token)
    return 0
