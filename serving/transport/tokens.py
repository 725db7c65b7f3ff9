"""`latentd token`: a fresh bearer token for a caller, and the line that grants it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latentd.errors import ConfigError
from latentd.rpc.methods import SCOPES, of_scope
from latentd.transport import access


def add_token_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `token`; it sets `run`, which takes the arguments and gives the exit status."""
    for_each = ", ".join(f"{scope} ({', '.join(of_scope(scope))})" for scope in SCOPES)
    parser = commands.add_parser(
        "token",
        help="make a bearer token for a caller",
        description="Print a fresh token to standard output, and to standard error the line that "
        "grants it, for the file that serve --tokens reads. The token is kept nowhere else.",
        epilog="Example: latentd token batch-jobs --scopes infer,models > token 2>> tokens.txt",
    )
    parser.add_argument("name", help="whose token it is, for log and error messages")
    parser.add_argument(
        "--scopes",
        default=",".join(SCOPES),
        help=f"what it is for: {for_each}. Data x needs infer in whichever method it is sent: "
        "Interpolate with an end point x needs generate and infer. Default: all",
    )
    parser.set_defaults(run=_run, extra="serve")


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
