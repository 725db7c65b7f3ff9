"""The datatypes of the protocol that latentd knows, and what they are in vae.v1 and numpy."""

from __future__ import annotations

from typing import Final

from latentd.pb import vae_pb2 as pb

DATATYPES: Final[dict[str, pb.DataType]] = {
    "UINT8": pb.DATA_TYPE_UINT8,
    "FP32": pb.DATA_TYPE_FLOAT32,
    "FP16": pb.DATA_TYPE_FLOAT16,
    "BF16": pb.DATA_TYPE_BFLOAT16,
}
"""Those of x and z, as vae.v1 has them."""
NAMES: Final = {data_type: name for name, data_type in DATATYPES.items()}
BYTES: Final = "BYTES"
"""Of an element of any length: a text, or the file of an image."""

INTEGERS: Final = {"UINT64": "<u8", "INT64": "<i8"}
"""Those of seeds and row indices, in numpy."""
NUMBERS: Final = {"FP32": "<f4", "UINT32": "<u4", "BOOL": "?"}
"""Those of outputs with one number for each row, in numpy."""
TYPED: Final = {
    "UINT8": ("uint_contents", "<u4"),
    "FP32": ("fp32_contents", "<f4"),
    "UINT64": ("uint64_contents", "<u8"),
    "INT64": ("int64_contents", "<i8"),
}
"""Those that have typed contents: the field, and what it holds in numpy."""
