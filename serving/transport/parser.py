"""`latentd token`: make a bearer token for a client, and the line that grants it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latentd.errors import ConfigError
from latentd.rpc.methods import SCOPES, of_scope
from latentd.transport import tokens


def add_token_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `token`; it sets `run`, which takes the arguments and returns the exit status."""
    methods = ", ".join(f"{scope} ({', '.join(of_scope(scope))})" for scope in SCOPES)
    parser = commands.add_parser(
        "token",
        help="make a bearer token for a client",
        description="Print a new token to standard output, and the line that grants it to standard "
        "error. Add the line to the file that serve --tokens reads. The token is not stored.",
        epilog="Example: latentd token batch-jobs --scopes infer,models > token 2>> tokens.txt",
    )
    parser.add_argument("name", help="name of the token's owner, for logs and error messages")
    parser.add_argument(
        "--scopes",
        default=",".join(SCOPES),
        help=f"what the token permits: {methods}. Data x needs infer in every method: Interpolate "
        "with an anchor x needs generate and infer. Default: all",
    )
    parser.set_defaults(run=_run, extra="serve")


def _run(args: argparse.Namespace) -> int:
    token, line = tokens.new_token(args.name, args.scopes.split(","))
    try:
        tokens.parse_tokens(line, Path(args.name))
    except ConfigError as error:
        print(f"latentd: {str(error).partition(': ')[2]}", file=sys.stderr)
        return 2
    print(line, file=sys.stderr)
    print(token)
    return 0
