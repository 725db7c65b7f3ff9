"""The command lines of `latentd serve` and `latentd plan`. Imports nothing that takes time."""

from __future__ import annotations

import argparse

from latentd import settings

Subparsers = argparse._SubParsersAction  # argparse's own name for what add_subparsers returns


def add_serve_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `serve`; it sets `run`, which takes the arguments and gives the exit status."""
    parser = commands.add_parser(
        "serve",
        help="serve bundles until SIGTERM",
        description="Serve every model under --bundles over gRPC. Each flag can also be set by "
        "its environment variable: --max-rows is LATENTD_MAX_ROWS. A flag wins over the "
        "environment, the environment over the default.",
        epilog="Example: latentd serve --bundles models --port 50051",
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=_serve, extra="serve")


def add_plan_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `plan`, likewise."""
    parser = commands.add_parser(
        "plan",
        help="say how many servers a rate of calls needs",
        description="Load a model as serve would, measure what it costs on this machine, and print "
        "how many servers a rate of calls needs, and how large.",
        epilog="Example: latentd plan --bundles models --rate 500 --rows 16 --workers 2",
    )
    asked = parser.add_argument_group("load")
    asked.add_argument("--rate", type=float, required=True, help="calls a second, of all callers")
    asked.add_argument("--rows", type=int, default=1, help="in each call (1)")
    calls = ("encode", "decode", "sample", "interpolate", "reconstruct", "score")
    asked.add_argument("--call", choices=calls, default="sample", help="(sample)")
    asked.add_argument("--draws", type=int, default=16, help="of each row, for score (16)")
    asked.add_argument(
        "--busy", type=float, default=0.6, help="share of the servers' time it may take (0.6)"
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=_plan, extra="serve")


def _serve(args: argparse.Namespace) -> int:
    from latentd.process import command

    return command.run(args)


def _plan(args: argparse.Namespace) -> int:
    from latentd.process import plan

    return plan.run(args)
