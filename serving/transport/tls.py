"""TLS from files that may be replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import grpc

from latentd.errors import ConfigError

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class Certificates:
    """A certificate with its key and, for mutual TLS, the authority that callers' must be from.

    The files are looked at with each new connection. What cannot be used is logged once and the
    certificate before it stays, so that a mistake, or a look between the two files of a
    replacement, cuts nobody off.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises ConfigError if the files cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = [file for file in (certificate, key, client_ca) if file]
        try:
            self._seen = self._stamp()
            self._current = self._read()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS cannot be had: {self._problem(error)}.") from None

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self._fetch,  # type: ignore[arg-type]  # None is fine, says its documentation
            require_client_authentication=self._client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """In a thread of gRPC's, for each handshake: what to use from now on; None: as before."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            self._current = self._read()
            if self._stamp() != stamp:
                return None  # replaced while being read: the next handshake looks again
        except (OSError, ssl.SSLError) as error:
            if stamp != self._seen:
                log.error("The new certificate is not used: %s.", self._problem(error))
            self._seen = stamp
            return None
        self._seen = stamp
        log.info("From now on with the new certificate %s.", self._certificate)
        return self._current

    def _stamp(self) -> Stamp:
        stats = [file.stat() for file in self._files]
        return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        # gRPC itself would only close connections, without a word, if these did not go together.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca:
            context.load_verify_locations(self._client_ca)
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        authority = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def _problem(self, error: OSError | ssl.SSLError) -> str:
        if isinstance(error, FileNotFoundError):
            return f"{error.filename or ' or '.join(map(str, self._files))} does not exist"
        if isinstance(error, ssl.SSLError):
            names = " and ".join(map(str, self._files))
            return f"{names} do not hold PEM that goes together ({error.reason or error})"
        return f"{error.filename}: {error.strerror}"
