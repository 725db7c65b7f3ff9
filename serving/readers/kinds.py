"""The kinds of files that are read, by suffix: one list for jobs and console.

Training has the same list of images. The halves share no code; a test keeps both lists equal.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Final, Literal

Kind = Literal["picture", "npy", "npz", "idx", "parquet", "text", "csv"]

PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Suffixes of image files, in any case. Of several frames the first is read."""

IMAGE: Final = "image format"
"""In the reason why an image file is skipped, and in no other reason for a single suffix."""

_OTHER_PICTURES: Final = (
    *(".avif", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm"),
    *(".arw", ".cr2", ".cr3", ".exr", ".ico", ".jfif", ".jpe", ".nef", ".psd", ".svg", ".tga"),
)

ENDINGS: Final[dict[str, Kind]] = {
    **dict.fromkeys(PICTURES, "picture"),
    ".npy": "npy",
    ".npy.gz": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".pq": "parquet",
    "-ubyte": "idx",  # train-images-idx3-ubyte, train-images.idx3-ubyte
    "-ubyte.gz": "idx",
    ".idx": "idx",
    ".idx.gz": "idx",
}
"""Ending of a name, in lower case -> kind of the file."""

LABELS: Final = ("idx1-ubyte", "idx1-ubyte.gz")
"""Endings of IDX files that hold one number for each row."""

TAKEN: Final = (
    f"Supported: images ({' '.join(PICTURES)}), .npy, .npz (or FILE.npz:key), .parquet and IDX "
    "files (train-images-idx3-ubyte, .gz or not), folders of one of these, globs; for models of "
    "text .txt files, one text a line; for models with columns .csv and .tsv files"
)

_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
_TABLES: Final = (".txt", ".json", ".jsonl", ".xlsx", ".feather", ".arrow", ".orc")
_TENSORS: Final = (".pt", ".pth", ".pkl", ".pickle", ".safetensors", ".h5", ".hdf5", ".mat")


def kind_of(name: str) -> Kind | None:
    """The kind of a file by its name or path; None: not a supported ending."""
    lower = name.lower()
    for ending, kind in ENDINGS.items():
        if lower.endswith(ending):
            return kind
    return None


def skip_reason(name: str) -> str:
    """Why a file whose kind is None is skipped, by its suffix."""
    suffix = PurePath(name.lower()).suffix
    if suffix in _OTHER_PICTURES:
        return f"{suffix} ({IMAGE} not supported)"
    return f"{suffix} (not supported)" if suffix else "without a suffix (not supported)"


def hint(name: str) -> str:
    """How to convert a file whose kind is None."""
    lower = name.lower()
    if lower.endswith(_ARCHIVES):
        return "Unpack it and name the folder."
    if lower.endswith(_OTHER_PICTURES):
        return "Convert it to .png or .jpg."
    if lower.endswith(_TABLES):
        return "Write its rows to a .npy or .parquet file."
    if lower.endswith(_TENSORS):
        return "Write its array with numpy.save to a .npy file."
    return ""
