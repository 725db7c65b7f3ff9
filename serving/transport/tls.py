"""TLS certificates from files that may be replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import grpc

from latentd.errors import ConfigError

log = logging.getLogger(__name__)

FileStats = tuple[tuple[int, int, int], ...]
"""Modification time, inode and size of each file."""


class Certificates:
    """A certificate, its key and, for mutual TLS, the CA that signs the clients' certificates.

    The files are checked at each new connection. If they cannot be used, that is logged once and
    the previous certificate stays. So clients can still connect after a mistake, or while only one
    of the two files has been replaced.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises ConfigError if the files cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = [file for file in (certificate, key, client_ca) if file]
        try:
            self._last_stats = self._stats()
            self._current, self._context = self._read()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"Cannot load TLS files: {self._problem(error)}.") from None

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials to open a port with."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self._reload_if_changed,  # type: ignore[arg-type]  # its documentation allows None
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """The same for a connection of Python's own TLS, by the files as they are now."""
        self._reload_if_changed()
        return self._context

    def _reload_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration; None: unchanged. A thread of gRPC's calls it at each handshake."""
        try:
            stats = self._stats()
            if stats == self._last_stats:
                return None
            self._current, self._context = self._read()
            if self._stats() != stats:
                return None  # replaced while being read: the next handshake checks again
        except (OSError, ssl.SSLError) as error:
            if stats != self._last_stats:
                log.error(
                    "TLS certificate not reloaded; keeping the previous one: %s.",
                    self._problem(error),
                )
            self._last_stats = stats
            return None
        self._last_stats = stats
        log.info("Reloaded TLS certificate %s.", self._certificate)
        return self._current

    def _stats(self) -> FileStats:
        stats = [file.stat() for file in self._files]
        return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in stats)

    def _read(self) -> tuple[grpc.ServerCertificateConfiguration, ssl.SSLContext]:
        # The context also checks them: if they do not match, gRPC only closes connections, without
        # a message.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        authority = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authority), context

    def _problem(self, error: OSError | ssl.SSLError) -> str:
        if isinstance(error, FileNotFoundError):
            return f"{error.filename or ' or '.join(map(str, self._files))} does not exist"
        if isinstance(error, ssl.SSLError):
            names = " and ".join(map(str, self._files))
            return f"certificate and private key do not match: {names} ({error.reason or error})"
        return f"{error.filename}: {error.strerror}"
