"""Arrays of numpy, of any shape and dtype, and their bytes in a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def to_npz(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an .npz file with these arrays."""
    file = io.BytesIO()
    members: dict[str, Any] = dict(arrays)  # numpy's types take names of options for arrays
    np.savez(file, **members)
    return file.getvalue()
