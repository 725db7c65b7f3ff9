"""diffusers' remote VAE: what `remote_decode` and `remote_encode` of diffusers send and expect.

    POST /vae/NAME/decode    latents to an image file or a tensor: Decode
    POST /vae/NAME/encode    an image file or a tensor to latents: Encode

Bodies are raw little-endian arrays; shape and dtype stand in the query, and in headers of the
response. Tensors of images are diffusers' own: NCHW, from -1 to 1.

Latents of vae.v1 are scaled: z = (z' - shift) * scale, by the model's own constants, with the z' of
its net. Clients of diffusers say by which constants theirs are scaled, or that they are z' itself.
If both mean the same, the bytes pass through unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from starlette.requests import Request

from latentd import codec, images
from latentd.bundle import Manifest
from latentd.codec import Array
from latentd.errors import InvalidArgument, Unsupported
from latentd.http.adapters import Content
from latentd.http.queries import Query
from latentd.models.repository import Repository
from latentd.pb import vae_pb2 as pb
from latentd.shapes import SizeError

TENSOR: Final = "tensor/binary"
_DTYPES: Final = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
    "uint8": pb.DATA_TYPE_UINT8,
}
_FLOATS: Final = ("float32", "float16", "bfloat16")
_OUTPUTS: Final = ("pil", "pt", "mp4")
_FILES: Final = {"jpg": ("JPEG", "image/jpeg"), "png": ("PNG", "image/png")}
_SAMPLE_MODES: Final = ("argmax", "sample")  # diffusers' words for the mean and a draw
_TOLERANCE: Final = 1 / 255
"""How far tensors of images may exceed -1..1: by a step of 8 bits, as floats of 16 bits round."""
_PATCH: Final = 2
"""Packed latents hold patches of 2 x 2 as one channel each, as FLUX has them."""


class Scaling:
    """By which constants a client's latents are scaled: z = (z' - shift) * scale, or z / scale +
    shift = z'.

    of_model: the model's own constants
    """

    def __init__(self, query: Query, of_model: bool) -> None:
        """Raises InvalidArgument."""
        scale, shift = query.number("scaling_factor"), query.number("shift_factor")
        self._of_model = of_model and scale is None
        if scale is None and shift is not None:
            raise InvalidArgument("shift_factor", "given alone", "Send scaling_factor with it")
        self._scale, self._shift = 1.0 if scale is None else scale, shift or 0.0
        if not math.isfinite(self._scale) or not self._scale:
            raise InvalidArgument("scaling_factor", f"must be finite and not 0, got {scale}")
        if not math.isfinite(self._shift):
            raise InvalidArgument("shift_factor", f"must be finite, got {shift}")

    def agrees(self, manifest: Manifest) -> bool:
        """Whether the client's latents are those of vae.v1."""
        z = manifest.z
        if self._of_model:
            return True
        return all(one == self._scale for one in z.scale or (1.0,)) and all(
            one == self._shift for one in z.shift or (0.0,)
        )

    def to_published(self, z: Array, manifest: Manifest) -> Array:
        """The latents of vae.v1, float32."""
        scale, shift = _constants(manifest)
        with np.errstate(all="ignore"):  # Decode refuses infinity
            z = ((z.astype(np.float64) / self._scale + self._shift) - shift) * scale
        return _float32(z)

    def from_published(self, z: Array, manifest: Manifest) -> Array:
        """The client's latents, float32. Raises InvalidArgument."""
        scale, shift = _constants(manifest)
        with np.errstate(all="ignore"):
            z = _float32(((z.astype(np.float64) / scale + shift) - self._shift) * self._scale)
        if not np.isfinite(z).all():
            raise InvalidArgument(
                "scaling_factor, shift_factor",
                "the latents scaled by them are beyond float32",
                "Send the constants of the model",
            )
        return z


class Decode:
    """One request of remote_decode."""

    method: Final = "/vae.v1.VaeService/Decode"

    def __init__(self, request: Request, repository: Repository) -> None:
        self._request, self._repository = request, repository

    def message(self, body: bytes) -> bytes:
        query = Query(self._request)
        shape = query.integers("shape")
        self._dtype = query.choice("dtype", _FLOATS, "float32")
        self._output = query.choice("output_type", _OUTPUTS, "pil")
        self._image_format = query.choice("image_format", tuple(_FILES), "jpg")
        self._postprocess = query.boolean("partial_postprocess")
        scaling = Scaling(query, of_model=query.boolean("do_scaling"))
        height, width = query.integer("height", 0), query.integer("width", 0)
        version = query.integer("version", 0)
        query.finish()
        if not shape:
            raise InvalidArgument("shape", "missing", "Send each length: shape=1&shape=4&...")
        if self._output == "mp4":
            raise Unsupported("output_type=mp4: this server has models of images, none of video.")
        name = self._request.path_params["name"]
        model = self._repository.peek(name, version)
        self._manifest = manifest = model.manifest
        _require_images(manifest)
        tensor = pb.Tensor(dtype=_DTYPES[self._dtype], shape=shape, data=body)
        packed = len(shape) == 3 and len(manifest.default.z) == 3
        if packed or not scaling.agrees(manifest):
            z = codec.from_tensor(tensor, "body")
            if packed:
                z = _unpacked(z, manifest, height, width)
            if not scaling.agrees(manifest):
                z = scaling.to_published(z, manifest)
            tensor = codec.to_tensor(np.ascontiguousarray(z))
        if self._is_file and list(tensor.shape[:1]) not in ([], [1]):
            raise InvalidArgument(
                "output_type",
                f"{tensor.shape[0]} latents sent, and an image file holds one picture",
                "Use output_type=pt with partial_postprocess=True",
            )
        served_by = model.served_by
        return pb.DecodeRequest(
            model=served_by.model, version=served_by.version, z=tensor
        ).SerializeToString()

    def content(self, message: bytes) -> Content:
        x = codec.from_tensor(pb.DecodeResponse.FromString(message).x.tensor)
        low, high = self._manifest.x.range
        if x.ndim == 3:
            x = x[..., None]  # gray
        if self._is_file:
            return _file(_bytes(x, low, high)[0], self._image_format)
        if self._output == "pt" and self._postprocess:
            return _tensor(_bytes(x, low, high), "uint8")
        unit = (x.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        values = unit if self._output == "pil" else unit * 2 - 1
        return _tensor(values.transpose(0, 3, 1, 2), self._dtype)

    @property
    def _is_file(self) -> bool:
        # With a processor, the client wants the numbers of `pil`, and says so in this header.
        return self._output == "pil" and TENSOR not in self._request.headers.get("accept", "")


class Encode:
    """One request of remote_encode."""

    method: Final = "/vae.v1.VaeService/Encode"

    def __init__(self, request: Request, repository: Repository) -> None:
        self._request, self._repository = request, repository

    def message(self, body: bytes) -> bytes:
        query = Query(self._request)
        shape, dtype = query.integers("shape"), query.choice("dtype", ("", *_DTYPES))
        self._scaling = Scaling(query, of_model=query.boolean("do_scaling"))
        draw = query.choice("sample_mode", _SAMPLE_MODES, "argmax") == "sample"
        has_seed, seed = query.given("seed"), query.integer("seed", 0, most=2**64 - 1)
        if has_seed and not draw:
            raise InvalidArgument("seed", "nothing is drawn", "Send sample_mode=sample with it")
        version = query.integer("version", 0)
        query.finish()
        model = self._repository.peek(self._request.path_params["name"], version)
        self._manifest = model.manifest
        _require_images(self._manifest)
        self._dtype = dtype if dtype in _FLOATS else "float32"
        if shape:
            tensor = pb.Tensor(dtype=_DTYPES[dtype or "float32"], shape=shape, data=body)
            x = _pixels(codec.from_tensor(tensor, "body"), self._manifest)
            rows = pb.Rows(tensor=codec.to_tensor(x))
        else:
            rows = pb.Rows(images=pb.Images(files=[body]))
        served_by = model.served_by
        request = pb.EncodeRequest(
            model=served_by.model, version=served_by.version, x=rows, draw=draw
        )
        if has_seed:
            request.seed = seed
        return request.SerializeToString()

    def content(self, message: bytes) -> Content:
        response = pb.EncodeResponse.FromString(message)
        drawn = response.HasField("z")
        z = codec.from_tensor(response.z if drawn else response.mean)
        if not self._scaling.agrees(self._manifest):
            z = self._scaling.from_published(z, self._manifest)
        return _tensor(z, self._dtype, {"latentd-seed": str(response.seed)} if drawn else {})


def _constants(manifest: Manifest) -> tuple[Array, Array]:
    """scale and shift of a model, of shape (channels or 1, 1, 1); 1 and 0 where it has none."""
    axes = (-1, *[1] * (len(manifest.default.z) - 1))
    z = manifest.z
    return np.reshape(z.scale or (1.0,), axes), np.reshape(z.shift or (0.0,), axes)


def _float32(values: Array) -> Array:
    with np.errstate(over="ignore"):
        found: Array = values.astype(np.float32)
    return found


def _unpacked(z: Array, manifest: Manifest, height: int, width: int) -> Array:
    """Packed latents (rows, patches, 4 * channels) as (rows, channels, h, w), for pictures of this
    height and width. Raises InvalidArgument."""
    if not height or not width:
        what = "packed latents do not tell their height and width"
        raise InvalidArgument("shape", what, "Send height and width, in pixels")
    try:
        shapes = manifest.shapes_of_x((height, width, *manifest.default.x.shape[2:]))
    except SizeError as error:
        raise InvalidArgument("height, width", error.what, error.hint) from None
    channels, h, w = shapes.z
    expected = (h // _PATCH * (w // _PATCH), channels * _PATCH**2)
    if z.shape[1:] != expected or h % _PATCH or w % _PATCH:
        raise InvalidArgument(
            "shape",
            f"expected [rows, {expected[0]}, {expected[1]}] for {height} x {width} pixels, "
            f"got {list(z.shape)}",
        )
    patches = z.reshape(-1, h // _PATCH, w // _PATCH, channels, _PATCH, _PATCH)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, channels, h, w)


def _require_images(manifest: Manifest) -> None:
    """Raises InvalidArgument unless the model's rows are images of a bounded range."""
    x = manifest.default.x
    if x.kind != "image" or not all(map(math.isfinite, x.range)):
        raise InvalidArgument("path", f"this model's rows are {x.dtype} {x.plural}", "Use gRPC")


def _pixels(sent: Array, manifest: Manifest) -> Array:
    """Tensors of images as the model's rows: floats are NCHW from -1 to 1, bytes NHWC. Raises
    InvalidArgument."""
    x = manifest.x
    if sent.ndim == 3:
        sent = sent[None]  # one image
    if sent.ndim != 4:
        what = f"expected 4 lengths, got {list(sent.shape)}"
        raise InvalidArgument("shape", what, "Send [images, channels, height, width]")
    if sent.dtype == np.uint8:
        unit = sent / np.float32(255)
    else:
        values = sent.astype(np.float32).transpose(0, 2, 3, 1)
        if values.size and not np.abs(values).max() <= 1 + _TOLERANCE:
            what = "images must hold numbers from -1 to 1"
            raise InvalidArgument("body", what, "Use VaeImageProcessor.preprocess")
        unit = (values.clip(-1, 1) + 1) / 2
    rows: Array = np.rint(unit * 255).astype(np.uint8)
    if x.dtype != "uint8":
        low, high = x.range
        rows = unit * np.float32(high - low) + np.float32(low)
    if len(x.shape.dims) == 2 and rows.shape[3] == 1:
        rows = rows[..., 0]  # gray
    return np.ascontiguousarray(rows)


def _bytes(x: Array, low: float, high: float) -> Array:
    if x.dtype == np.uint8:
        return x
    pixels: Array = np.rint((x - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    return pixels


def _file(row: Array, image_format: str) -> Content:
    kind, media_type = _FILES[image_format]
    return Content(images.encode_files([row], kind)[0], media_type)


def _tensor(values: Array, dtype: str, headers: Mapping[str, str] | None = None) -> Content:
    """Raises InvalidArgument for a number that is too large for the dtype."""
    if dtype in ("float16", "bfloat16"):
        try:
            values = codec.narrowed(values, dtype)
        except InvalidArgument as error:
            raise InvalidArgument("dtype", error.what, "Use float32") from None
    described = {"shape": json.dumps(values.shape), "dtype": dtype}
    return Content(values.tobytes(), TENSOR, {**described, **(headers or {})})
