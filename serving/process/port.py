"""The port: what is said when it is open, for one process or several, and when it cannot be had."""

from __future__ import annotations

import logging

from latentd.errors import ConfigError

log = logging.getLogger(__name__)


def address(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_is_taken(host: str, port: int) -> ConfigError:
    """What to tell who chose a port that cannot be had."""
    return ConfigError(
        f"{address(host, port)} cannot be opened: it is in use or not an address of this machine. "
        "Choose another with --port (0: any free one) or --host."
    )


def announce(host: str, port: int, metrics_port: int) -> None:
    """Say in the log where callers and Prometheus find the server."""
    grpc, http = address(host, port), address(host, metrics_port)
    log.info("Listening on %s, metrics on http://%s/metrics.", grpc, http)
