"""map.npz: some training rows in latent space, what they look like, and what was measured of them.

Training writes the file and GetMap returns it. It is optional, because it holds training data. The
server checks it when it loads a version, and keeps none of it: each GetMap reads the file again.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentd.bundle import MAP, MAX_MAP_BYTES, Manifest, read_plain, readable
from latentd.errors import BundleError

Floats = NDArray[np.float32]

MIN_ROWS: Final = 2
"""One row has no variance."""
MAX_ROWS: Final = 20_000
SPRITE_SIDE: Final = 32  # pixels at most
_WHOLE_LATENT: Final = 1024  # numbers: of larger latents with several axes, means are of channels
_QUALITY: Final = 80  # of WebP: a seventh of a PNG's bytes for photographs
_WEBP: Final = struct.Struct("<4s4x8s4x3x3sHH")  # to the width and height of its VP8 frame
_MAX_UNPACKED: Final = 4 * MAX_MAP_BYTES


@dataclass(frozen=True, eq=False)
class LatentMap:
    """A map of training rows; row j of each array is the same row.

    mean:                 float32 (rows, *z), or (rows, channels): see `is_pooled`
    components:           float32 (2, *z): the principal components of the means, of unit length
    center:               float32 z: the mean of the means
    position:             float32 (rows, 2): along the components
    explained_variance:   float64 (2,): each component's share of the means' variance
    active:               bool z: whether the mean of this number of z varies over the rows
    unit_kl:              float32 z, nats: mean over the rows; None: the posterior is a point
    classes:              the names of labels, as text (classes,); None: the data has no labels
    label:                int32 (rows,): an index of classes
    reconstruction_error: float32 (rows,), nats; None, as kl: the model has no scores
    kl:                   float32 (rows,), nats
    sprites:              the bytes of a WebP file, uint8 (bytes,); see `sprite_sheet`
    sprite_shape:         int64 (2,): height and width of each sprite
    x:                    the rows, in x's dtype (rows, *x); None: they are images
    """

    mean: Floats
    components: Floats
    center: Floats
    position: Floats
    explained_variance: NDArray[np.float64]
    active: NDArray[np.bool_]
    unit_kl: Floats | None = None
    classes: NDArray[np.str_] | None = None
    label: NDArray[np.int32] | None = None
    reconstruction_error: Floats | None = None
    kl: Floats | None = None
    sprites: NDArray[np.uint8] | None = None
    sprite_shape: NDArray[np.int64] | None = None
    x: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.position)

    def to_npz(self) -> bytes:
        """The file's bytes."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        file = io.BytesIO()
        np.savez(file, **{name: array for name, array in found.items() if array is not None})
        return file.getvalue()


def is_pooled(z: tuple[int, ...]) -> bool:
    """Whether a map keeps only the mean of each channel of such latents."""
    return len(z) > 1 and math.prod(z) > _WHOLE_LATENT


def sprite_sheet(images: NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
    """The images (rows, height, width[, 1 or 3]) in one WebP file, reduced to SPRITE_SIDE pixels a
    side at most; and the height and width of each. They fill lines of ceil(sqrt(rows)) from the top
    left."""
    height, width = images.shape[1:3]
    scale = min(1.0, SPRITE_SIDE / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    gray = images[..., 0] if images.shape[3:] == (1,) else images
    columns = math.ceil(math.sqrt(len(gray)))
    mode = "RGB" if gray.ndim == 4 else "L"
    sheet = Image.new(mode, (columns * width, -(-len(gray) // columns) * height), "white")
    for row, pixels in enumerate(gray):
        sprite = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        sheet.paste(sprite, (row % columns * width, row // columns * height))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue(), (height, width)


def load(folder: Path, manifest: Manifest) -> LatentMap:
    """The map in a bundle's folder. Raises BundleError: missing or unreadable, or map: it is not
    the file that was published."""
    entry = manifest.files[MAP]
    with readable(MAP):
        data = read_plain(folder / MAP, entry["bytes"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BundleError("map", f"{MAP} is not the file that was published (its sha256 differs).")
    return read(data, manifest)


def read(data: bytes, manifest: Manifest) -> LatentMap:
    """Read the file's bytes and check them. Raises BundleError(map)."""
    try:
        arrays = _unpack(data)
        unknown = arrays.keys() - {f.name for f in fields(LatentMap)}
        if unknown:
            raise ValueError(f"it has an unknown array {min(unknown)!r}")
        found = LatentMap(**arrays)
        _check(found, manifest)
    except (
        *(OSError, ValueError, TypeError, EOFError, NotImplementedError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error, SyntaxError),
    ) as error:
        raise BundleError("map", f"{MAP} is not a map of this model's rows: {error}.") from None
    return found


def _unpack(data: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = file.infolist()
        total = sum(member.file_size for member in members)
        if total > _MAX_UNPACKED:
            raise ValueError(
                f"it would unpack to {total >> 20} MiB; the limit is {_MAX_UNPACKED >> 20} MiB"
            )
        return {
            member.filename.removesuffix(".npy"): _array(file.read(member)) for member in members
        }


def _array(data: bytes) -> NDArray[Any]:
    """An array of a .npy file. A header of a larger array than the file has allocates nothing."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError("an array has an unexpected header")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _check(found: LatentMap, manifest: Manifest) -> None:
    """Raises ValueError, in words that follow a colon."""
    shapes, rows = manifest.default, len(found.position)
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise ValueError(f"it has {rows} rows; expected {MIN_ROWS} to {MAX_ROWS}")
    z = shapes.z
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "mean": ("float32", (rows, *(z[:1] if is_pooled(z) else z))),
        "components": ("float32", (2, *z)),
        "center": ("float32", z),
        "position": ("float32", (rows, 2)),
        "explained_variance": ("float64", (2,)),
        "active": ("bool", z),
        "unit_kl": ("float32", z),
        "label": ("int32", (rows,)),
        "reconstruction_error": ("float32", (rows,)),
        "kl": ("float32", (rows,)),
        "sprite_shape": ("int64", (2,)),
        "x": (shapes.x.dtype, (rows, *shapes.x.shape)),
    }
    for name, (dtype, shape) in expected.items():
        array = getattr(found, name)
        if array is None:
            continue
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise ValueError(
                f"{name} has dtype {array.dtype} and shape {array.shape}; expected {dtype} and "
                f"{shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has NaN or infinity")
    if (found.unit_kl is None) != (manifest.posterior == "point"):
        raise ValueError("it has no unit_kl, or the model's posterior is a point")
    for one, other in (
        *(("classes", "label"), ("reconstruction_error", "kl"), ("sprites", "sprite_shape")),
    ):
        if (getattr(found, one) is None) != (getattr(found, other) is None):
            raise ValueError(f"it needs both {one} and {other}, or neither")
    if found.classes is not None and found.label is not None:
        names = found.classes
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(f"classes has dtype {names.dtype}; expected text")
        "".join(names.tolist()).encode()  # UnicodeEncodeError is a ValueError
        if not 0 <= found.label.min() <= found.label.max() < len(names):
            raise ValueError("a label has no name in classes")
    if shapes.x.kind == "image" and found.x is not None:
        raise ValueError("images are sprites, and it has x")
    if found.sprites is not None and found.sprite_shape is not None:
        _check_sprites(found.sprites, found.sprite_shape, rows)


def _check_sprites(file: NDArray[np.uint8], shape: NDArray[np.int64], rows: int) -> None:
    """Check the header of the sprite sheet. Pillow is not used: its plugins would stay in the
    memory of a server that is never asked for a map."""
    height, width = shape.tolist()
    if not (1 <= height <= SPRITE_SIDE and 1 <= width <= SPRITE_SIDE):
        raise ValueError(f"sprites are {height} x {width}; expected 1 to {SPRITE_SIDE} pixels")
    if file.ndim != 1 or file.dtype != np.uint8:
        raise ValueError(f"sprites has dtype {file.dtype}; expected the bytes of a file")
    header = file[: _WEBP.size].tobytes().ljust(_WEBP.size, b"\0")
    riff, kind, start, *sides = _WEBP.unpack(header)
    if (riff, kind, start) != (b"RIFF", b"WEBPVP8 ", b"\x9d\x01\x2a"):
        raise ValueError("sprites is not a lossy WebP file")
    found = (sides[0] & 0x3FFF, sides[1] & 0x3FFF)  # the upper two bits are for display
    columns = math.ceil(math.sqrt(rows))
    size = (columns * width, -(-rows // columns) * height)
    if found != size:
        raise ValueError(f"the sprites' sheet has {found} pixels; expected {size}")
