"""Publishes a bundle under a name and in a folder that the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latentd import bundle
from latentd.bundle import Manifest
from latentd.errors import BundleError
from latentd.training.errors import TrainingError


def check(bundles: Path, name: str) -> None:
    """Raise TrainingError if no bundle can be published there under this name: before the work."""
    if not bundle.MODEL_NAME.fullmatch(name):
        raise TrainingError(
            f"--name {name!r}: use 1 to 64 lower-case letters, digits, '.', '_' or '-', beginning "
            "and ending with a letter or a digit."
        )
    root = bundle.root_above(bundles)
    if root is not None:
        raise TrainingError(
            f"--bundles {bundles} is the folder of one model or version. Did you mean {root}?"
        )


def publish(bundles: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Publish the next version of the manifest's model. Returns its folder; raises
    TrainingError."""
    try:
        return bundle.publish(bundles, manifest, files)
    except BundleError as error:
        raise TrainingError(str(error)) from None
    except OSError as error:
        raise TrainingError(f"--bundles {bundles} cannot be written: {error.strerror}.") from None
