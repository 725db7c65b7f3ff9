"""The methods of the client without transport: each turns arguments into a request and its reader.

Both clients in `latentd.client` take their methods, with signatures and docstrings, from here.
Every call except list_models and health takes `model` and `version`. An empty `model` means the
client's model, or the server's default. `version` 0 means the newest, or, if `model` is empty too,
the client's version.

`sizes` is the length of each free axis of new rows, such as {"h": 96, "w": 160}; an axis that is
not named has its default. Rows and latents that are sent have their own size. z_shape is the shape
of one latent: get_model().at(sizes).z.

`float_dtype` is the format in which floats are sent back: "float32", or "float16" and "bfloat16"
for half the bytes. Results then hold float16 arrays. numpy has no bfloat16, so these numbers come
back as float32 arrays. Bytes remain bytes.

`format` "png", "jpeg" or "webp" asks for an image file for each row: the result's `files`, which
its `x` decodes. `fit` is what is done with image files that are sent: see encode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf import wrappers_pb2

from latentd.client import arguments, responses, results
from latentd.client.arguments import Data, LatentAnchor, SampledPoint, SupportsArray
from latentd.client.call import CLIENT_TIMEOUT, Call, ChunkedCall, Chunks, Needs, Timeout
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb


def get_model(
    *, model: str = "", version: int = 0, timeout: Timeout = CLIENT_TIMEOUT
) -> Call[results.ModelInfo]:
    """Shapes, ranges, limits, versions and measured cost of the model."""
    request = pb.GetModelRequest(model=model, version=arguments.version(version))
    return Call("GetModel", request, responses.read_model_info, timeout)


def list_models(*, timeout: Timeout = CLIENT_TIMEOUT) -> Call[list[results.ListedModel]]:
    """Every model and version that the server found, including rejected ones."""
    return Call("ListModels", pb.ListModelsRequest(), responses.read_listed_models, timeout)


def get_map(
    *, model: str = "", version: int = 0, timeout: Timeout = CLIENT_TIMEOUT
) -> Call[results.LatentMap]:
    """Some training rows in latent space, if the bundle was exported with --map-rows; otherwise
    raises InvalidArgument."""
    request = pb.GetMapRequest(model=model, version=arguments.version(version))
    return Call("GetMap", request, responses.read_map, timeout, _needs(map=True))


def encode(
    x: Data,
    *,
    fit: str = "",
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Encoding]:
    """x -> mean and log_var of its latent distribution; with `draw` also a z drawn from it.

    fit: of image files of another size or other colors than the model's: "refuse" (also ""),
    "resize" or "crop"; vae.proto, Fit, tells what each does.
    Row j uses the noise of row offset + j of `seed` (None: the client chooses a seed).
    tiling: run large rows in tiles, "when-needed" (whole, they do not fit into memory) or "always";
    ModelInfo.tiles tells what that costs. The result's `tiled` tells how they were run.
    """
    request = pb.EncodeRequest(
        model=model,
        version=arguments.version(version),
        x=arguments.rows(x, fit=fit),
        draw=draw,
        offset=arguments.check_uint("offset", offset, 63),
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    if draw:
        request.seed = arguments.seed(seed)
    needs = _needs(draw=draw, tiling=tiling)
    return Call("Encode", request, responses.read_encoding, timeout, needs)


def decode(
    z: Array | SupportsArray,
    *,
    params: bool = False,
    draw_x: bool = False,
    seed: int | None = None,
    offset: int = 0,
    format: str = "",
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Decoding]:
    """z, floats of shape (rows, *z_shape) -> x, or with `params` the parameters of p(x | z).

    draw_x: draw x from p(x | z); False: greedy decoding of texts, means and most probable levels of
    columns. Row i is drawn by row offset + i of the seed.
    """
    output = pb.DECODE_OUTPUT_PARAMS if params else pb.DECODE_OUTPUT_X
    request = pb.DecodeRequest(
        model=model,
        version=arguments.version(version),
        z=arguments.latents(z),
        output=output,
        draw_x=draw_x,
        offset=arguments.check_uint("offset", offset, 63),
        format=arguments.image_format(format),
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    if draw_x:
        request.seed = arguments.seed(seed)
    needs = _needs(params=params, images=bool(format), tiling=tiling)
    return Call("Decode", request, responses.read_decoding, timeout, needs)


def sample(
    count: int,
    *,
    seed: int | None = None,
    offset: int = 0,
    temperature: float = 1.0,
    draw_x: bool = False,
    format: str = "",
    include_z: bool = False,
    sizes: Mapping[str, int] | None = None,
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Samples]:
    """`count` new rows. Row i depends only on the bundle, the seed and offset + i.

    seed: 0 .. 2^64 - 1; None: the client chooses one, and the result holds it.
    temperature: standard deviation of the latents.
    draw_x: draw x from p(x | z); False: greedy decoding of texts, means and most probable levels of
    columns.
    sizes: the length of each free axis, e.g. {"h": 96, "w": 160}; None: the defaults.
    """
    request = pb.SampleRequest(
        model=model,
        version=arguments.version(version),
        count=arguments.check_uint("count", count, 32),
        seed=arguments.seed(seed),
        offset=arguments.check_uint("offset", offset, 63),
        temperature=temperature,
        draw_x=draw_x,
        format=arguments.image_format(format),
        include_z=include_z,
        sizes=arguments.sizes(sizes),
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    needs = _needs(sample=True, images=bool(format), tiling=tiling)
    return Call("Sample", request, responses.read_samples, timeout, needs)


def stream_samples(
    count: int,
    *,
    seed: int | None = None,
    offset: int = 0,
    temperature: float = 1.0,
    draw_x: bool = False,
    format: str = "",
    include_z: bool = False,
    chunk_rows: int = 0,
    sizes: Mapping[str, int] | None = None,
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: float | None = None,
) -> Call[results.Samples]:
    """Like sample, for any count, in chunks of up to `chunk_rows` rows (0: the server's choice).

    If a server is lost, the stream resumes at the first missing row with the same seed and version:
    no row is lost or repeated. If you stop iterating, the server stops too. `timeout` covers the
    whole stream; None, the default: no deadline.
    """
    if count == 0:  # the client would have all rows before the server could reject it
        raise InvalidArgument("count", "0 rows", "Request at least 1")
    request = pb.StreamSamplesRequest(
        model=model,
        version=arguments.version(version),
        count=arguments.check_uint("count", count, 63),
        seed=arguments.seed(seed),
        offset=arguments.check_uint("offset", offset, 63),
        temperature=temperature,
        draw_x=draw_x,
        format=arguments.image_format(format),
        include_z=include_z,
        chunk_rows=arguments.check_uint("chunk_rows", chunk_rows, 32),
        sizes=arguments.sizes(sizes),
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    needs = _needs(sample=True, images=bool(format), tiling=tiling)
    return Call("StreamSamples", request, responses.read_samples, timeout, needs)


def reconstruct(
    x: Data,
    *,
    fit: str = "",
    draw: bool = False,
    draw_x: bool = False,
    seed: int | None = None,
    offset: int = 0,
    include_scores: bool = False,
    threshold: float | None = None,
    include_contributions: bool = False,
    format: str = "",
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Reconstruction]:
    """x -> latent -> x': from the latent's mean, or with `draw` from a draw (see encode).

    draw_x: draw x from p(x | z); False: greedy decoding of texts, means and most probable levels of
    columns.
    threshold: with include_scores: rows with a larger reconstruction_error are outliers; None: the
    bundle's, if it has one.
    include_contributions: also what each element of x adds to its row's reconstruction_error.
    """
    request = pb.ReconstructRequest(
        model=model,
        version=arguments.version(version),
        x=arguments.rows(x, fit=fit),
        draw=draw,
        draw_x=draw_x,
        offset=arguments.check_uint("offset", offset, 63),
        format=arguments.image_format(format),
        include_scores=include_scores,
        threshold=threshold,
        include_contributions=include_contributions,
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    if draw or draw_x:
        request.seed = arguments.seed(seed)
    needs = _needs(
        draw=draw,
        include_scores=include_scores,
        images=bool(format),
        tiling=tiling,
        include_contributions=include_contributions,
    )
    return Call("Reconstruct", request, responses.read_reconstruction, timeout, needs)


def stream_reconstruct(
    chunks: Chunks,
    *,
    fit: str = "",
    draw: bool = False,
    draw_x: bool = False,
    seed: int | None = None,
    offset: int = 0,
    include_scores: bool = False,
    threshold: float | None = None,
    include_contributions: bool = False,
    include_latents: bool = False,
    include_x: bool = True,
    in_flight: int = 4,
    float_dtype: str = "float32",
    model: str = "",
    version: int = 0,
    timeout: float | None = None,
) -> ChunkedCall[Chunks]:
    """Like reconstruct, for any number of chunks of rows: one response for each, in order.

    The rows of a chunk have one size; chunks may differ.

    At most `in_flight` chunks wait for their response; until then `chunks` is not read further. If
    a server is lost or overloaded, the client resends the pending chunks after the delay that the
    server names. `timeout` covers the whole stream; None: no deadline. AsyncClient also takes
    asynchronous iterables.
    """
    request = pb.StreamReconstructRequest(
        model=model,
        version=arguments.version(version),
        draw=draw,
        draw_x=draw_x,
        offset=arguments.check_uint("offset", offset, 63),
        include_scores=include_scores,
        threshold=threshold,
        include_contributions=include_contributions,
        include_latents=include_latents,
        include_x=include_x,
        float_dtype=arguments.float_dtype(float_dtype),
    )
    if draw or draw_x:
        request.seed = arguments.seed(seed)
    needs = _needs(
        draw=draw, include_scores=include_scores, include_contributions=include_contributions
    )
    return ChunkedCall(request, chunks, in_flight, timeout, needs, fit)


def interpolate(
    start: LatentAnchor,
    end: LatentAnchor,
    *,
    steps: int = 9,
    path: str = "slerp",
    format: str = "",
    include_z: bool = False,
    sizes: Mapping[str, int] | None = None,
    float_dtype: str = "float32",
    tiling: str = "",
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Interpolation]:
    """`steps` rows from `start` to `end`, both included; path: "slerp" or "lerp".

    Both ends have one size. `sizes` is that of ends that are samples; ends that are data or latents
    have their own.
    """
    paths = {"slerp": pb.INTERPOLATION_PATH_SLERP, "lerp": pb.INTERPOLATION_PATH_LERP}
    if path not in paths:
        raise InvalidArgument("path", f"unknown path {path!r}", 'Use "slerp" or "lerp"')
    request = pb.InterpolateRequest(
        model=model,
        version=arguments.version(version),
        start=arguments.latent_anchor(start, "start"),
        end=arguments.latent_anchor(end, "end"),
        steps=arguments.check_uint("steps", steps, 32),
        path=paths[path],
        format=arguments.image_format(format),
        include_z=include_z,
        sizes=arguments.sizes(sizes),
        float_dtype=arguments.float_dtype(float_dtype),
        tiling=arguments.tiling(tiling),
    )
    anchors = (("start", start), ("end", end))
    sampled = [f"{name}.sample" for name, point in anchors if isinstance(point, SampledPoint)]
    needs = (*(("sample", field) for field in sampled), *_needs(images=bool(format), tiling=tiling))
    return Call("Interpolate", request, responses.read_interpolation, timeout, needs)


def score(
    x: Data,
    *,
    fit: str = "",
    draws: int = 0,
    seed: int | None = None,
    offset: int = 0,
    threshold: float | None = None,
    include_contributions: bool = False,
    model: str = "",
    version: int = 0,
    timeout: Timeout = CLIENT_TIMEOUT,
) -> Call[results.Scores]:
    """ELBO and importance-weighted log-likelihood of each row, in nats.

    draws: number for each row; 0: the server's default. More draws give a tighter bound.
    threshold: rows with a larger reconstruction_error, which is computed at the mean of the
    latents, are outliers; None: the bundle's, if it has one.
    include_contributions: also what each element of x adds to its row's reconstruction_error.
    """
    request = pb.ScoreRequest(
        model=model,
        version=arguments.version(version),
        x=arguments.rows(x, fit=fit),
        draws=arguments.check_uint("draws", draws, 32),
        seed=arguments.seed(seed),
        offset=arguments.check_uint("offset", offset, 63),
        threshold=threshold,
        include_contributions=include_contributions,
    )
    needs = _needs(score=True, include_contributions=include_contributions)
    return Call("Score", request, responses.read_scores, timeout, needs)


def health(service: str = "", *, timeout: Timeout = CLIENT_TIMEOUT) -> Call[str]:
    """The server's health: "SERVING", "NOT_SERVING", ... With healthy_only=True, the default, a
    client raises Unavailable for a server that is not SERVING; use healthy_only=False here.
    """
    states = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
    request = wrappers_pb2.StringValue(value=service)
    return Call("Health", request, lambda response: states[response.value], timeout)


_FIELDS: Final = {
    "sample": ("sample", "model"),
    "score": ("score", "model"),
    "map": ("map", "model"),
    "include_scores": ("score", "include_scores"),
    "draw": ("draw", "draw"),
    "params": ("params", "output"),
    "images": ("images", "format"),
    "tiling": ("tiles", "tiling"),
    "include_contributions": ("contributions", "include_contributions"),
}
"""What a call may need -> the capability, and the request's field that asks for it."""


def _needs(**wanted: bool | str) -> Needs:
    return tuple(_FIELDS[name] for name, is_wanted in wanted.items() if is_wanted)
