"""The lines of the token file: made by `latentd token`, parsed by the server.

Each line of the file holds a name, the scopes separated by commas, and the token's SHA-256:

    batch-jobs infer,models sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The file holds no tokens, so reading it gives no access. Standard library only: `latentd token`
needs no other package.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd.errors import ConfigError
from latentd.rpc.methods import SCOPES

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of the file."""

    name: str
    scopes: frozenset[str]
    digest: bytes  # SHA-256 of the token


def parse_tokens(content: str, file: Path) -> list[Grant]:
    """The grants of a file's content. Raises ConfigError naming the line."""
    grants = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, parts = f"--tokens {file}, line {number}", line.split()
        digest = _DIGEST.fullmatch(parts[2]) if len(parts) == 3 else None
        if digest is None:
            raise ConfigError(
                f"{where}: expected NAME SCOPE,SCOPE sha256:<64 hex digits>. "
                "Run `latentd token NAME` to make such a line."
            )
        scopes = frozenset(parts[1].split(","))
        unknown = scopes - set(SCOPES)
        if unknown:
            raise ConfigError(
                f"{where}: unknown scope {', '.join(sorted(unknown))}; "
                f"valid scopes: {', '.join(SCOPES)}."
            )
        grants.append(Grant(parts[0], scopes, bytes.fromhex(digest[1])))
    if not grants:
        raise ConfigError(f"--tokens {file} contains no tokens, so every call would be rejected.")
    return grants


def new_token(name: str, scopes: list[str]) -> tuple[str, str]:
    """A new random token, and the line of the file that grants it."""
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, f"{name} {','.join(scopes)} sha256:{digest}"
