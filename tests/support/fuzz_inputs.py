"""Messages, files and numbers: valid, at a limit, invalid, or valid with some bytes changed."""

from __future__ import annotations

import io
import random
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st
from PIL import Image

from latentd.images import FORMATS
from latentd.pb import vae_pb2 as pb

# Numbers at limits, where sizes overflow and ranges end.
edges = st.sampled_from([0, 1, 2, 3, 15, 16, 17, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1])
wide = st.one_of(edges, st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


def image(width: int, height: int, mode: str, form: str = "PNG") -> bytes:
    turned = Image.Exif()
    turned[0x0112] = 6  # the tag of the orientation
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, form, exif=turned)
    return file.getvalue()


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with bytes changed, removed, inserted or repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 32))]
            case _:
                del data[at:]
    return bytes(data)


def mutant(whole: bytes, chance: random.Random) -> bytes:
    """The same, but faster: hypothesis takes longer for an input than the server."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                data[at:at] = data[at : at + chance.randint(1, 32)]
    return bytes(data)


files = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([image(4, 4, "L"), image(4, 4, "RGB"), image(5, 4, "L"), image(4, 4, "P")]),
    st.sampled_from([image(24, 16, "RGB"), image(32, 16, "RGB"), image(20, 16, "RGB")]),
    *(mutated(image(*size, "L", form)) for size in [(4, 4), (16, 24)] for form in FORMATS),
    *(mutated(image(24, 16, mode)) for mode in ("RGBA", "I;16")),
)
tensors = st.builds(
    pb.Tensor,
    dtype=st.sampled_from([0, 1, 2, 3, 4, 77]),
    shape=st.one_of(
        st.sampled_from([[1, 4, 4], [2, 4, 4], [1, 16], [3, 16], [1, 16, 24, 3], [1, 4, 2, 3]]),
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 17), max_size=4),
    ),
    data=st.one_of(
        st.sampled_from([bytes(n) for n in (16, 32, 48, 64, 96, 1152)] + [b"\xff" * 64]),
        st.binary(max_size=80),
    ),
)
image_files = st.builds(pb.Images, files=st.lists(files, max_size=3), fit=st.integers(0, 4))
rows = st.one_of(
    st.builds(pb.Rows),
    st.builds(pb.Rows, tensor=tensors),
    st.builds(pb.Rows, images=image_files),
    st.builds(pb.Rows, text=st.builds(pb.Texts, texts=st.lists(st.text(max_size=20), max_size=3))),
)
anchors = st.one_of(
    st.builds(pb.LatentAnchor),
    st.builds(pb.LatentAnchor, x=rows),
    st.builds(pb.LatentAnchor, z=tensors),
    st.builds(pb.LatentAnchor, sample=st.builds(pb.SampledPoint, seed=wide, index=wide)),
)
fields = {
    "x": rows,
    "z": tensors,
    "start": anchors,
    "end": anchors,
    "count": edges,
    "steps": edges,
    "draws": edges,
    "chunk_rows": edges,
    "seed": wide,
    "offset": wide,
    "temperature": st.floats(width=32),
    "model": st.sampled_from(["", "toy", "spatial", "missing", "../toy", "x" * 5000, "\0"]),
    "version": st.integers(0, 3),
    "format": st.integers(0, 6),
    "float_dtype": st.integers(0, 6),
    "sizes": st.dictionaries(
        st.sampled_from(["", "h", "w", "x" * 5000]),
        edges | st.sampled_from([16, 24, 256, 264]),
        max_size=3,
    ),
    "tiling": st.integers(0, 4),
    "output": st.integers(0, 4),
    "path": st.integers(0, 4),
    "draw": st.booleans(),
    "draw_x": st.booleans(),
    "include_scores": st.booleans(),
    "threshold": st.floats(),
    "include_contributions": st.booleans(),
    "include_z": st.booleans(),
    "include_latents": st.booleans(),
    "include_x": st.booleans(),
}


def requests(
    kind: type[Message], fields: dict[str, st.SearchStrategy[Any]] = fields
) -> st.SearchStrategy[bytes]:
    """Messages whose fields are valid or invalid. A field without a strategy in `fields` fails."""
    known = {field.name: fields[field.name] for field in kind.DESCRIPTOR.fields}
    built = st.fixed_dictionaries({}, optional=known).map(lambda given: kind(**given))
    return built.map(lambda message: message.SerializeToString())
