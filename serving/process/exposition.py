"""The page of metrics, over HTTP for Prometheus."""

from __future__ import annotations

import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server

from serving.errors import ConfigError


def expose(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Open the page; returns its port and what closes it. Raises ConfigError if it cannot."""
    try:
        http, _ = start_http_server(port, host, registry=registry)
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host} is no address of this machine: {error.strerror}. "
            "Name one, without brackets; 0.0.0.0 is every interface, :: with IPv6 too."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The metrics port {port} cannot be opened: {error.strerror}. "
            "Choose another with --metrics-port (0: any free one)."
        ) from None

    def close() -> None:
        http.shutdown()
        http.server_close()

    return http.server_port, close
