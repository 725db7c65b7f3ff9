"""`latentd explore`: the explorer beside any server, as a page on this machine."""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from typing import Any, Final

from latentd.errors import EXIT_CONFIG, ConfigError

SERVER: Final = "localhost:50051"
_PORT: Final = 8050
_MAX_PORT: Final = 65535
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)


def add_explore_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `explore`; it sets `run`, which takes the arguments and returns the exit status."""
    parser = commands.add_parser(
        "explore",
        help="walk a latent space in the browser, beside any server",
        description="Serve the explorer's page on this machine. Its calls go to a latentd server, "
        "as background traffic. `latentd serve --http-port` serves the same page itself.",
        epilog="Example: latentd explore --server gpu-box:50051, then open the address it prints",
    )
    parser.add_argument("--server", default=SERVER, help=f"address of the server ({SERVER})")
    parser.add_argument(
        "--port", type=int, default=_PORT, help=f"port of the page ({_PORT}; 0: any)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--tls-ca", default="", help="certificates to trust: the server uses TLS")
    parser.add_argument("--token-file", default="", help="file with a bearer token for every call")
    parser.set_defaults(run=_run, extra="explore")


def _run(args: argparse.Namespace) -> int:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    from latentd.client.channel import CredentialFiles
    from latentd.explorer import connect, forward, pages

    try:
        if not 0 <= args.port <= _MAX_PORT:
            raise ConfigError(f"--port {args.port}: must be from 0 to {_MAX_PORT}.")
        credentials: dict[str, Any] = CredentialFiles(args.tls_ca, "", "", args.token_file).read()
        caller = forward.Forwarder(args.server, **credentials)
    except ConfigError as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    calls = Route(connect.PATH, connect.endpoint(caller), methods=["POST"])
    routes = [*pages.routes(lambda: args.server), calls]
    local = ["localhost", "127.0.0.1", "::1", "[::1]", args.host]
    # Another host's page must not reach the server, or use the token, by a name of its own.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if args.host in _ANY else local)
    app = Starlette(routes=routes, middleware=[hosts])
    try:
        # Bound here, so that the address is known and open before it is printed.
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listening = socket.create_server((args.host, args.port), family=family)
    except OSError as error:
        where = f"--host {args.host} --port {args.port}"
        print(f"latentd: {where}: cannot listen: {error.strerror}.", file=sys.stderr)
        return EXIT_CONFIG
    port = listening.getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    page = f"http://{host}:{port}/explore/"
    print(f"Explore {args.server} at {page} (Ctrl-C stops)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    with suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and raises it again
        uvicorn.Server(config).run(sockets=[listening])
    return 0
