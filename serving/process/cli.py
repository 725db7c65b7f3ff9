"""The commands `latentd serve` and `latentd plan`.

The functions that add parsers import nothing slow: `latentd --help` must respond at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

from latentd import settings
from latentd.errors import EXIT_CONFIG, ConfigError

log = logging.getLogger(__name__)

Subparsers = argparse._SubParsersAction  # argparse's own name for what add_subparsers returns


def add_serve_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `serve`; sets `run`, which takes the arguments and returns the exit status."""
    parser = commands.add_parser(
        "serve",
        help="serve bundles until SIGTERM",
        description="Serve every model under --bundles over gRPC. Each flag has an environment "
        "variable: --max-rows is LATENTD_MAX_ROWS. A flag overrides the environment, the "
        "environment overrides the default.",
        epilog="Example: latentd serve --bundles models --port 50051",
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=serve, extra="serve")


def add_plan_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `plan`; sets `run`, which takes the arguments and returns the exit status."""
    parser = commands.add_parser(
        "plan",
        help="compute how many servers a rate of calls needs",
        description="Load a model as serve would, measure its costs on this machine, and print "
        "how many servers a rate of calls needs, and how large.",
        epilog="Example: latentd plan --bundles models --rate 500 --rows 16 --workers 2",
    )
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=float, required=True, help="calls per second, of all clients")
    load.add_argument("--rows", type=int, default=1, help="in each call (1)")
    calls = ("encode", "decode", "sample", "interpolate", "reconstruct", "score")
    load.add_argument("--call", choices=calls, default="sample", help="(sample)")
    load.add_argument("--draws", type=int, default=16, help="of each row, for score (16)")
    load.add_argument(
        "--target-utilization",
        type=float,
        default=0.6,
        help="share of the servers' time that the calls may use (0.6)",
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=_plan, extra="serve")


def serve(args: argparse.Namespace) -> int:
    """Serve in one process or several until a signal; returns the exit status."""
    from latentd import logs
    from latentd.models import storage
    from latentd.runtime import provider

    try:
        chosen = settings.load_settings(vars(args))
        logs.configure(chosen.log_level, chosen.log_format)
        for name in settings.unknown_env_vars():
            log.warning("Ignoring unknown environment variable %s.", name)
        storage.check_root(Path(chosen.bundles))
        # Workers combine their metrics themselves. If this folder does not exist,
        # prometheus-client would fail.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        workers = chosen.workers or provider.default_worker_count(chosen.provider)
        chosen = dataclasses.replace(chosen, workers=workers)
        if workers > 1:
            from latentd.process.supervisor import Supervisor

            return Supervisor(chosen).run()
        from latentd.process import server

        server.run(server.Server(chosen))
        return 0
    except ConfigError as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG


def _plan(args: argparse.Namespace) -> int:
    from latentd.process import capacity

    return capacity.plan(args)
