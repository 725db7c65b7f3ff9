"""TLS and tokens from files, as a person at the terminal names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from latentd.errors import ConfigError


@dataclass(frozen=True)
class CredentialFiles:
    """What --tls-ca, --tls-cert, --tls-key and --token-file name."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None

    def read(self) -> dict[str, Any]:
        """`credentials` and `token` as clients take them. Raises ConfigError where the files
        contradict each other or cannot be read."""
        try:
            token = Path(self.token_file).read_text().strip() if self.token_file else ""
            if self.token_file and not token:
                raise ConfigError(f"--token-file {self.token_file} holds no token.")
            return {"credentials": self._credentials(), "token": token}
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.") from None

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("--tls-cert and --tls-key go together: give both or none.")
        if not self.tls_ca:
            if self.tls_cert:
                raise ConfigError(
                    "--tls-cert needs --tls-ca, the authority that the server is from."
                )
            return None
        files = (self.tls_ca, self.tls_key, self.tls_cert)
        authority, key, certificate = (Path(file).read_bytes() if file else None for file in files)
        return grpc.ssl_channel_credentials(authority, key, certificate)
