"""The `latentd` command: serve bundles, and call a server from the shell."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence

from serving import __version__
from serving.errors import ConfigError

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: trying again without a change will not help


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
    from serving.console.parser import add_client_parser

    add_client_parser(commands)
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


def _serve(args: argparse.Namespace) -> int:
    # Here and not above: `latentd client` needs neither onnxruntime nor prometheus-client.
    from serving import logs, settings
    from serving.server import Server

    try:
        chosen = settings.read(vars(args))
        logs.configure(chosen.log_level, chosen.log_format)
        for name in settings.unknown_variables():
            logging.getLogger(__name__).warning("%s is set and is no setting of serve.", name)

        async def life() -> None:
            await Server(chosen).serve()

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(life())
    except ConfigError as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it is not made for every platform; asyncio's own loop serves as well
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())
