"""Fetch an archive of bundles, check it against its digest, unpack it and verify every bundle.

    fetch_bundles.py FOLDER        with BUNDLES_URL and BUNDLES_SHA256 in the environment

The archive is a .tar of <model>/<version>/ folders, compressed or not; nothing of it is looked into
before its sha256 has been found right. Exit status: 0 done; 1 it cannot be had now; 65 what came is
not what was asked for; 78 BUNDLES_URL or BUNDLES_SHA256 cannot be right.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from latentd import bundle
from latentd.errors import EXIT_CONFIG, BundleError, ConfigError

EXIT_UNAVAILABLE = 1
EXIT_DATA = 65  # EX_DATAERR of sysexits.h
_CHUNK = 1 << 20
_SECONDS = 60.0  # without a byte


def main(folder: Path, environment: Mapping[str, str]) -> int:
    """Fill `folder`; returns the exit status."""
    if not hasattr(tarfile, "data_filter"):
        return _fail("Only Python 3.11.4 or newer unpacks archives safely.", EXIT_CONFIG)
    try:
        with tempfile.TemporaryFile() as archive:
            url, wanted = _settings(environment)
            found = _download(url, archive)
            if found != wanted:
                raise BundleError("digest", f"{url} has sha256 {found}, not {wanted}.")
            archive.seek(0)
            with tarfile.open(fileobj=archive) as tar:
                tar.extractall(folder, filter="data")  # no links outwards, no devices, no owners
        bundles = [
            bundle.load(model / str(version))
            for model in sorted(folder.iterdir())
            if model.is_dir()
            for version in bundle.versions(model)
        ]
        if not bundles:
            raise BundleError("format", f"{url} holds no <model>/<version>/ folder.")
    except ConfigError as error:
        return _fail(str(error), EXIT_CONFIG)
    except (BundleError, tarfile.TarError) as error:
        return _fail(str(error), EXIT_DATA)
    except OSError as error:  # urllib's errors are of it, too
        return _fail(f"The bundles cannot be fetched: {error}.", EXIT_UNAVAILABLE)
    for one in bundles:
        print(f"{one.manifest.model} version {one.manifest.version} ({one.digest})", flush=True)
    return 0


def _settings(environment: Mapping[str, str]) -> tuple[str, str]:
    url, digest = environment.get("BUNDLES_URL", ""), environment.get("BUNDLES_SHA256", "")
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"BUNDLES_URL={url}: this must be an http or https address.")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"BUNDLES_SHA256={digest}: this must be the 64 digits that sha256sum prints."
        )
    return url, digest


def _download(url: str, archive: IO[bytes]) -> str:
    """Write what lies at `url` into `archive`; returns its sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_SECONDS) as response:  # noqa: S310 (checked above)
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            archive.write(chunk)
    return digest.hexdigest()


def _fail(sentence: str, status: int) -> int:
    print(f"fetch_bundles: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), os.environ))
