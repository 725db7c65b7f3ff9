"""Fields that several methods share: rows in either format, seeds, noise, model versions."""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from latentd import capabilities, codec, images, latents
from latentd.bundle import DataSpec, RowShapes
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future, run_in_executor, run_long_in_executor
from latentd.decoding import Sampled
from latentd.errors import InvalidArgument, PermissionDenied
from latentd.latents import POSTERIOR, Latents, Noise, NoiseRange
from latentd.models.inference import ServedModel
from latentd.models.tiled import TiledModel
from latentd.pb import vae_pb2 as pb
from latentd.ranges import Counts
from latentd.shapes import Shape, SizeError

WithRows = (
    pb.SampleResponse
    | pb.StreamSamplesResponse
    | pb.DecodeResponse
    | pb.ReconstructResponse
    | pb.StreamReconstructResponse
    | pb.InterpolateResponse
)
"""The responses that hold rows x."""

_ABSOLUTE_PATH: Final = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+([^\s/'\"]*)")
_ROW_INDEX_LIMIT: Final = 2**63  # exclusive
_MAX_TEMPERATURE: Final = 10.0
_QUICK: Final = 1 << 16
"""Conversion of so many numbers to or from 16 bits takes less than half a millisecond, and so does
a check of so many bytes of texts."""
_FEW_TEXTS: Final = 256
"""So many texts are read or written in less than half a millisecond."""


def prior_noise(request: pb.SampleRequest | pb.StreamSamplesRequest, rows: int) -> NoiseRange:
    """The noise of samples from the prior: `rows` rows from the request's offset on."""
    return noise_range(seed(request), request.offset, rows, "offset")


def temperature(request: pb.SampleRequest | pb.StreamSamplesRequest) -> float:
    """The standard deviation of the latents. Raises InvalidArgument."""
    temperature: float = request.temperature if request.HasField("temperature") else 1.0
    if not 0.0 <= temperature <= _MAX_TEMPERATURE:
        raise InvalidArgument(
            "temperature", f"must be between 0 and {_MAX_TEMPERATURE:g}, got {temperature:g}"
        )
    return temperature


def posterior_noise(
    request: pb.EncodeRequest | pb.ReconstructRequest | pb.ScoreRequest | pb.DecodeRequest,
    rows: int,
) -> NoiseRange:
    """The noise of samples from the posteriors of `rows` rows."""
    return noise_range(seed(request), request.offset, rows, "offset", POSTERIOR)


def sampled(
    request: pb.DecodeRequest
    | pb.SampleRequest
    | pb.StreamSamplesRequest
    | pb.ReconstructRequest
    | pb.StreamReconstructRequest,
    model: ServedModel,
    noise: Noise,
) -> Sampled | None:
    """How x is decoded if the request says draw_x; None: it does not. Raises InvalidArgument."""
    if not request.draw_x:
        return None
    x = model.manifest.default.x
    if not model.manifest.takes_choices:
        name = model.manifest.model
        raise InvalidArgument(
            "draw_x",
            f"only texts and rows with columns are drawn, and rows of {name} are {x.plural}; their "
            "x is a mean",
            "Leave draw_x out",
        )
    return Sampled(x.size, noise)


def noise_range(
    seed: int, offset: int, rows: int, field: str, stream: int = latents.PRIOR
) -> NoiseRange:
    """Rows offset .. offset + rows of a seed. Raises InvalidArgument beyond the last row index."""
    if offset + rows > _ROW_INDEX_LIMIT:
        raise InvalidArgument(field, f"offset {offset} + {rows} rows exceeds 2^63")
    return NoiseRange(seed, offset, rows, stream)


def seed(
    request: pb.SampleRequest
    | pb.StreamSamplesRequest
    | pb.EncodeRequest
    | pb.ReconstructRequest
    | pb.StreamReconstructRequest
    | pb.ScoreRequest
    | pb.DecodeRequest,
) -> int:
    """The request's seed, or a random one, which the response returns. That one fits into the
    signed integers of other protocols and languages."""
    return request.seed if request.HasField("seed") else secrets.randbits(63)


def require_scope(context: CallContext, scope: str, field: str, content: str) -> None:
    """Check that the call's token has the scope that a field's content needs in addition to the
    method's. Raises PermissionDenied."""
    if context.scopes is not None and scope not in context.scopes:
        has = ", ".join(sorted(context.scopes))
        raise PermissionDenied(
            f'{field}: scope "{scope}" required for {content}; this token has: {has}.'
        )


def without_folders(reason: str, root: Path) -> str:
    """A reason that clients may see. Paths below the bundles' root are shown relative to it, other
    absolute paths by their last part: clients need not know the server's folders."""
    for folder in {str(root), str(root.absolute()), str(root.resolve())}:
        reason = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", reason)
    return _ABSOLUTE_PATH.sub(r"\1", reason)


def with_tiling(model: ServedModel, tiling: pb.Tiling) -> ServedModel:
    """The model, as this call runs it. Raises InvalidArgument."""
    if tiling == pb.TILING_UNSPECIFIED:
        return model
    if tiling not in pb.Tiling.values():
        raise InvalidArgument("tiling", f"unknown enum value {tiling}")
    require(model, "tiles", "tiling")
    if not model.manifest.tiles:
        name = model.manifest.model
        raise InvalidArgument("tiling", f"{name} has rows of one size only", "Leave tiling out")
    return TiledModel(model, always=tiling == pb.TILING_ALWAYS)


def tiled(model: ServedModel) -> pb.Tiled:
    """Whether this call's rows were run in tiles, a field of responses."""
    if not isinstance(model, TiledModel) or not model.used:
        return pb.TILED_UNSPECIFIED
    return (
        pb.TILED_EXACT if all(tile.exact for tile in model.used.values()) else pb.TILED_APPROXIMATE
    )


def shapes_at(sizes: Mapping[str, int], model: ServedModel) -> RowShapes:
    """The rows at the sizes that a request names. Raises InvalidArgument."""
    try:
        return _fitting(model.manifest.at(sizes), model, "sizes")
    except SizeError as error:
        field = f'sizes["{error.axis}"]' if error.axis else "sizes"
        raise InvalidArgument(field, error.what, error.hint) from None


def _fitting(shapes: RowShapes, model: ServedModel, field: str) -> RowShapes:
    """These shapes. Raises InvalidArgument if a run of one row would not fit into memory."""
    if reason := model.too_large(shapes):
        raise InvalidArgument(field, *reason)
    return shapes


def require_room(
    shapes: RowShapes, model: ServedModel, field: str, form: pb.Format, float_dtype: str
) -> None:
    """Raise InvalidArgument if one row is larger than a message, before it is computed. How large
    an image file will be is not known.

    float_dtype: the 16-bit format that the request asks for, or ""
    """
    narrow = bool(float_dtype) and shapes.x.dtype == "float32"
    reason = (
        None
        if form in codec.IMAGE_FORMATS
        else model.beyond_message(shapes.x.nbytes // (1 + narrow))
    )
    if reason:
        raise InvalidArgument(field, *reason)


async def shapes_of_rows(rows: pb.Rows, model: ServedModel, field: str) -> RowShapes:
    """The rows at the size of the rows sent. Raises InvalidArgument. Files are looked at in the
    thread pool."""
    if rows.WhichOneof("content") == "images" and model.manifest.axes:
        return await run_in_executor(_shapes_of_files, rows.images, model, f"{field}.images")
    return _shapes_of_rows(rows, model, field)


def _shapes_of_rows(rows: pb.Rows, model: ServedModel, field: str) -> RowShapes:
    """As shapes_of_rows, of rows that are not files."""
    manifest = model.manifest
    if manifest.axes and rows.WhichOneof("content") == "tensor" and len(rows.tensor.shape) > 1:
        field = f"{field}.tensor.shape"
        lengths = _lengths_of_row(rows.tensor, manifest.x.shape, field)
        return _shapes_of_x(lengths, model, field)
    return manifest.default  # reading the rows reports the error


def _lengths_of_row(tensor: pb.Tensor, row: Shape, field: str) -> tuple[int, ...]:
    """The lengths of a tensor's rows. Raises InvalidArgument if they are not as many as those of
    `row`, the shape of x or z."""
    if len(tensor.shape) != len(row.dims) + 1:
        dims = ", ".join(str(dim.json) for dim in row.dims)
        raise InvalidArgument(
            field,
            f"expected [rows, {dims}], got {list(tensor.shape)}",
            codec.rows_hint(len(tensor.shape), len(row.dims)),
        )
    return tuple(tensor.shape[1:])


def _shapes_of_files(files: pb.Images, model: ServedModel, field: str) -> RowShapes:
    """The rows at the size of the first file."""
    if not (model.manifest.axes and files.files and model.manifest.default.x.is_8bit_image):
        return model.manifest.default  # reading the rows reports the error
    fit = codec.read_fit(files, f"{field}.fit")
    return _shapes_of_file(files.files[0], fit, model, f"{field}.files[0]")


def _shapes_of_file(file: bytes, fit: str, model: ServedModel, field: str) -> RowShapes:
    """The rows at a file's size or, if files are made to fit, at the nearest one."""
    channels = model.manifest.default.x.shape[2:]
    lengths = (*images.height_and_width(file, field, images.FORMATS), *channels)
    if fit != "refuse":
        return _fitting(model.manifest.shapes_near(lengths), model, field)
    try:
        return _shapes_of_x(lengths, model, field)
    except InvalidArgument as error:
        hint = f"{error.hint}. {images.FIT_OF_REQUEST}" if error.hint else images.FIT_OF_REQUEST
        raise InvalidArgument(field, error.what, hint) from None


def _shapes_of_x(lengths: tuple[int, ...], model: ServedModel, field: str) -> RowShapes:
    try:
        return _fitting(model.manifest.shapes_of_x(lengths), model, field)
    except SizeError as error:
        raise InvalidArgument(field, error.what, error.hint) from None


async def read_latents(
    tensor: pb.Tensor, model: ServedModel, field: str, max_rows: int = 0
) -> tuple[Latents, RowShapes]:
    """z, checked, and the rows at its size.

    max_rows: 0: the model's
    """
    shapes = shapes_of_latents(tensor, model, field)
    limit = max_rows or model.max_rows(shapes)
    if _is_slow(tensor):
        return await run_in_executor(codec.read_latents, tensor, shapes.z, limit, field), shapes
    return codec.read_latents(tensor, shapes.z, limit, field), shapes


def shapes_of_latents(tensor: pb.Tensor, model: ServedModel, field: str) -> RowShapes:
    """The rows at the size of the latents sent. Raises InvalidArgument."""
    manifest = model.manifest
    if not manifest.axes or len(tensor.shape) < 2:
        return manifest.default  # reading the latents reports the error
    lengths = _lengths_of_row(tensor, manifest.z.shape, f"{field}.shape")
    try:
        return _fitting(manifest.shapes_of_z(lengths), model, f"{field}.shape")
    except SizeError as error:
        what = f"a latent of shape {list(lengths)} means that {error.what}"
        raise InvalidArgument(
            f"{field}.shape", what if error.axis else error.what, error.hint
        ) from None


def require(model: ServedModel, capability: str, field: str) -> None:
    """Raise InvalidArgument with the reason if the model cannot do this."""
    manifest = model.manifest
    if manifest.unavailable:
        capabilities.require(manifest.model, manifest.unavailable, capability, field)


async def read_rows(
    rows: pb.Rows, model: ServedModel, field: str, max_rows: int = 0, contributions: bool = False
) -> tuple[codec.Array, Counts | None]:
    """x, checked, and how many values of each row lie outside the model's range. What takes
    milliseconds is done in the thread pool: to decode image files, to widen many floats, and to
    read many texts.

    max_rows: 0: the model's. contributions: the response has those of each row
    """
    of_files = rows.WhichOneof("content") == "images"

    def read() -> tuple[codec.Array, Counts | None]:
        if of_files:
            shapes = _shapes_of_files(rows.images, model, f"{field}.images")
        else:
            shapes = _shapes_of_rows(rows, model, field)
        limit = max_rows or model.max_rows(shapes, contributions)
        return codec.read_rows(rows, shapes.x, limit, field)

    if of_files:
        run = await _executor_of(rows.images, model, f"{field}.images")
        found: tuple[codec.Array, Counts | None] = await run(read)
        return found
    return await run_in_executor(read) if _are_slow(rows, model.manifest.default.x) else read()


async def read_rows_lenient(
    rows: pb.Rows, model: ServedModel, field: str, contributions: bool = False
) -> tuple[codec.Array, Counts | None, dict[int, str]]:
    """As read_rows, but a bad row does not reject the message; see codec.decode_rows_lenient."""
    if rows.WhichOneof("content") == "images":
        run = await _executor_of(rows.images, model, f"{field}.images")
        lenient: tuple[codec.Array, Counts | None, dict[int, str]]
        lenient = await run(_read_files_lenient, rows, model, field, contributions)
        return lenient
    shapes = _shapes_of_rows(rows, model, field)
    limit = model.max_rows(shapes, contributions)
    read = functools.partial(codec.decode_rows_lenient, rows, shapes.x, limit, field)
    return await run_in_executor(read) if _are_slow(rows, shapes.x) else read()


async def _executor_of(
    files: pb.Images, model: ServedModel, field: str
) -> Callable[..., Future[Any]]:
    """Where files are read: those of many pixels apart, so that no other work waits for them. Files
    that are not made to fit have as many as rows of the model. Raises InvalidArgument."""
    if codec.read_fit(files, f"{field}.fit") == "refuse":
        return run_in_executor
    most = model.max_rows(model.manifest.smallest)
    codec.check_rows(len(files.files), most, f"{field}.files")  # before headers are read
    count = await run_in_executor(images.count_pixels, files.files, f"{field}.files")
    return run_long_in_executor if count > images.LARGE else run_in_executor


def _read_files_lenient(
    rows: pb.Rows, model: ServedModel, field: str, contributions: bool
) -> tuple[codec.Array, Counts | None, dict[int, str]]:
    """The size is that of the first file whose size the model takes; if files are made to fit, of
    the first that can be read."""
    manifest, bad = model.manifest, dict[int, str]()
    if not manifest.axes or not manifest.default.x.is_8bit_image:
        limit = model.max_rows(manifest.default, contributions)
        return codec.decode_rows_lenient(rows, manifest.default.x, limit, field)
    limit = model.max_rows(manifest.smallest, contributions)
    codec.check_rows(len(rows.images.files), limit, f"{field}.images.files")
    shapes, fit = manifest.default, codec.read_fit(rows.images, f"{field}.images.fit")
    for index, file in enumerate(rows.images.files):
        try:
            shapes = _shapes_of_file(file, fit, model, "")
            break
        except InvalidArgument as error:
            bad[index] = error.reason
    limit = model.max_rows(shapes, contributions)
    return codec.decode_rows_lenient(rows, shapes.x, limit, field, bad)


def _is_slow(tensor: pb.Tensor) -> bool:
    return codec.is_narrow(tensor) and len(tensor.data) > 2 * _QUICK


def _are_slow(rows: pb.Rows, x: DataSpec) -> bool:
    if x.is_text:
        return len(rows.text.texts) > _FEW_TEXTS or len(rows.tensor.data) > _QUICK
    return _is_slow(rows.tensor)


async def narrowed(name: str, *arrays: codec.Array | None) -> list[Any]:
    """The arrays in the 16-bit format that the request asks for; None remains None. Raises
    InvalidArgument for a number that is too large for it."""

    def convert() -> list[codec.Array | None]:
        return [None if array is None else codec.narrowed(array, name) for array in arrays]

    large = sum(array.size for array in arrays if array is not None) > _QUICK
    return await run_in_executor(convert) if large else convert()


async def write_rows(values: codec.Array, form: pb.Format, response: WithRows) -> None:
    """Fill the response's x. Image files and many texts are made in the thread pool."""
    if form in codec.IMAGE_FORMATS or (form == pb.FORMAT_TEXT and len(values) > _FEW_TEXTS):
        await run_in_executor(codec.write_rows, values, form, response.x)
    else:
        codec.write_rows(values, form, response.x)
