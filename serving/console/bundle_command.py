"""`latentd bundle show`: describes a bundle without a server, and verifies its files.

Exit status: 0 shown; 65 the bundle is damaged; 78 there is no bundle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from latentd.errors import EXIT_CONFIG, BundleError, ConfigError

EXIT_DAMAGED: Final = 65
"""EX_DATAERR of sysexits.h."""
_ALONE: Final = "no: only the manifest was read. Name its folder to verify the files"

Subparsers = argparse._SubParsersAction  # argparse's own name for what add_subparsers returns


def add_bundle_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `bundle show`; it sets `run`, which returns the exit status."""
    parser = commands.add_parser(
        "bundle",
        help="show what is in a bundle, and verify it",
        description="Read a bundle from its folder. No server is needed.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="describe a bundle and verify its files",
        description="Describe a bundle: its data and latents, what it can do, where it comes from, "
        "what was measured, and its files, which are verified by their checksums. Exit status: 0 "
        "it is whole, 65 it is damaged, 78 there is none.",
        epilog="Example: latentd bundle show models/digits",
    )
    show.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="the folder of a version, or of a model: its newest version; or a manifest.json alone",
    )
    show.add_argument("--json", action="store_true", help="print the manifest")
    show.set_defaults(run=_show, extra="client")


def _show(args: argparse.Namespace) -> int:
    from latentd import bundle
    from latentd.console import bundle_text
    from latentd.manifest_schema import MAX_MANIFEST_BYTES

    try:
        path = _manifest_of(args.path)
        with bundle.readable(str(path)):
            data = bundle.read_plain(path, MAX_MANIFEST_BYTES, link=path == args.path)
        manifest = bundle.Manifest.from_json(data, str(path))
    except (BundleError, ConfigError) as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_DAMAGED if isinstance(error, BundleError) else EXIT_CONFIG
    damage, verified = "", _ALONE
    if path != args.path:
        try:
            stray = bundle.load(path.parent).stray
            verified = "yes: every file has the published bytes"
            if stray:
                verified += f". The manifest does not name {', '.join(stray)}: ignored"
        except BundleError as error:
            damage, verified = str(error), f"DAMAGED: {error}"
    if args.json:
        sys.stdout.write(data.decode())
    else:
        print("\n".join(bundle_text.lines(manifest, data, verified)))
    if damage:
        print(f"latentd: {damage}", file=sys.stderr)
    return EXIT_DAMAGED if damage else 0


def _manifest_of(path: Path) -> Path:
    """The manifest in a folder of a version or of a model; `path` itself if it is a file. Raises
    ConfigError, BundleError."""
    from latentd import bundle

    with bundle.readable(str(path)):
        if path.is_file():
            return path
        if not path.exists():
            raise ConfigError(f"{path} does not exist. Name the folder of a version or of a model.")
        folder = path.resolve()  # "." too has the names of a model and of a version
        if (folder / bundle.MANIFEST).exists():
            return folder / bundle.MANIFEST
        if numbers := bundle.versions(folder):
            return folder / str(numbers[-1]) / bundle.MANIFEST
        models = sorted(entry.name for entry in folder.iterdir() if bundle.versions(entry))
    if models:
        raise ConfigError(
            f"{path} holds the models {', '.join(models)}. Name one: {path / models[0]}."
        )
    raise ConfigError(
        f"{path} holds no bundle. Name the folder of a version or of a model, or a manifest.json."
    )
