"""The `latentd` command: serve bundles, and call a server from the shell."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serving import __version__
from serving.errors import EXIT_CONFIG, ConfigError

if TYPE_CHECKING:
    from serving.settings import Settings


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
    _add_serve(commands)
    _add_token(commands)
    _add_plan(commands)
    from serving.console.parser import add_client_parser
    from serving.jobs.parser import add_reconstruct_parser

    add_client_parser(commands)
    add_reconstruct_parser(commands)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    return int(args.run(args))


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from serving import settings

    parser = commands.add_parser(
        "serve",
        help="serve bundles until SIGTERM",
        description="Serve every model under --bundles over gRPC. Each flag can also be set by "
        "its environment variable: --max-rows is LATENTD_MAX_ROWS. A flag wins over the "
        "environment, the environment over the default.",
        epilog="Example: python -m serving serve --bundles models --port 50051",
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=_serve)


def _add_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from serving.transport.access import SCOPES

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
        default=",".join(SCOPES),
        help="what it is for: models (GetModel, ListModels), generate (Sample, StreamSamples, "
        "Decode, Interpolate), infer (Encode, Reconstruct, Score). Default: all",
    )
    parser.set_defaults(run=_token)


def _token(args: argparse.Namespace) -> int:
    from serving.transport import access

    token, line = access.new_token(args.name, args.scopes.split(","))
    try:
        access.read(line, Path(args.name))
    except ConfigError as error:
        print(f"latentd: {str(error).partition(': ')[2]}", file=sys.stderr)
        return 2
    print(line, file=sys.stderr)
    print(token)
    return 0


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from serving import settings

    parser = commands.add_parser(
        "plan",
        help="say how many servers a rate of calls needs",
        description="Load a model as serve would, measure what it costs on this machine, and print "
        "how many servers a rate of calls needs, and how large.",
        epilog="Example: python -m serving plan --bundles models --rate 500 --rows 16 --workers 2",
    )
    asked = parser.add_argument_group("load")
    asked.add_argument("--rate", type=float, required=True, help="calls a second, of all callers")
    asked.add_argument("--rows", type=int, default=1, help="in each call (1)")
    calls = ("encode", "decode", "sample", "interpolate", "reconstruct")
    asked.add_argument("--call", choices=calls, default="sample", help="(sample)")
    asked.add_argument(
        "--busy", type=float, default=0.6, help="share of the servers' time it may take (0.6)"
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from serving.process import plan

    return plan.run(args)


def _serve(args: argparse.Namespace) -> int:
    # Here and not above: `latentd client` needs neither onnxruntime nor prometheus-client.
    from serving import logs, settings
    from serving.runtime import provider

    try:
        chosen = settings.read(vars(args))
        logs.configure(chosen.log_level, chosen.log_format)
        for name in settings.unknown_variables():
            logging.getLogger(__name__).warning("%s is set and is no setting of serve.", name)
        workers = chosen.workers or provider.best_workers(chosen.provider)
        chosen = dataclasses.replace(chosen, workers=workers)
        return _serve_many(chosen) if workers > 1 else _serve_alone(chosen)
    except ConfigError as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG


def _serve_alone(chosen: Settings) -> int:
    from serving.process import server

    server.run(server.Server(chosen))
    return 0


def _serve_many(chosen: Settings) -> int:
    with tempfile.TemporaryDirectory(prefix="latentd-") as folder:
        # Before anything imports prometheus-client, which looks at it once.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from serving.process.supervisor import Supervisor

        return Supervisor(chosen).run()


if __name__ == "__main__":
    sys.exit(main())
