"""Files of rows and latents that a person names on the command line, as arrays."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serving import images
from serving.bundle import XSpec
from serving.client.arguments import DataPoint, EndPoint, LatentPoint, SampledPoint
from serving.codec import Array
from serving.errors import InvalidInput

_NPZ: Final = re.compile(r"(.+\.npz)(?::(.+))?")


def read_rows(files: Sequence[str], rows: slice, x: XSpec) -> Array:
    """The files' rows, one file below the other, then `rows` of them.

    PNG files become rows of the model; arrays stay as they are, for the server to judge. Raises
    InvalidInput naming the file, OSError where it cannot be read.
    """
    parts = [_read(file, x) for file in files]
    if len({(part.dtype, part.shape[1:]) for part in parts}) > 1:
        named = zip(files, parts, strict=True)
        found = ", ".join(f"{file}: {part.dtype} {part.shape[1:]}" for file, part in named)
        raise InvalidInput("FILE", f"rows of several kinds ({found})", "Send them separately")
    every = parts[0] if len(parts) == 1 else np.concatenate(parts)
    chosen: Array = every[rows]
    if not len(chosen):
        raise InvalidInput("--rows", f"no rows are left of {len(every)}")
    return chosen


def read_latents(file: str) -> Array:
    """z of shape (rows, latent size); of an .npz the key z or, where there is none, mean."""
    z = _load(file, ("z", "mean"))
    if not len(z):
        raise InvalidInput(file, "no latents in it", "Give at least one")
    return z[None] if z.ndim == 1 else z


def read_point(text: str, x: XSpec, field: str) -> EndPoint:
    """An end point: "seed:7", "seed:7@3", "z:FILE.npy", or a PNG or .npy file of one row."""
    if text.startswith("seed:"):
        match = re.fullmatch(r"seed:(\d+)(?:@(\d+))?", text)
        if not match:
            raise InvalidInput(field, f"{text!r} is no sampled point", "Say seed:7 or seed:7@3")
        return SampledPoint(int(match[1]), int(match[2] or 0))
    if text.startswith("z:"):
        z = read_latents(text.removeprefix("z:"))
        if len(z) != 1:
            raise InvalidInput(field, f"{text[2:]} holds {len(z)} latents, where one is due")
        return LatentPoint(z[0])
    rows = _read(text, x)
    if rows.shape == x.shape:
        return DataPoint(rows)
    if len(rows) != 1:
        raise InvalidInput(field, f"{text} holds {len(rows)} rows, where one is due")
    return DataPoint(rows[0])


def _read(file: str, x: XSpec) -> Array:
    if not file.lower().endswith(".png"):
        return _load(file, ("x",))
    try:
        return images.read_pngs([Path(file).read_bytes()], x, file)
    except InvalidInput as error:
        raise InvalidInput(file, error.what, error.hint) from None


def _load(file: str, keys: Sequence[str]) -> Array:
    archive = _NPZ.fullmatch(file)
    path = Path(archive[1] if archive else file)
    if path.suffix not in (".npy", ".npz"):
        raise InvalidInput(file, "not a file this reads", "Give .png, .npy or .npz files")
    try:
        if not archive:
            # Mapped: of a large file only the chosen rows are read.
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as arrays:
                wanted = (archive[2],) if archive[2] else keys
                key = next((key for key in wanted if key in arrays), None)
                if key is None:
                    raise InvalidInput(
                        file,
                        f"no array named {' or '.join(wanted)}",
                        f"Name one of its own: {path}:{' or '.join(arrays.files) or '(none)'}",
                    )
                array = arrays[key]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(file, f"not an array that can be read ({error})") from None
    if not array.ndim:
        raise InvalidInput(file, "a single number, where rows are due")
    return array
