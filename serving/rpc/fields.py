"""Fields that several methods share: who answered, rows in either form, seeds and their draws."""

from __future__ import annotations

import functools
import re
import secrets
from pathlib import Path
from typing import Final

from latentd import codec, latents
from latentd.calls.context import CallContext
from latentd.calls.coroutines import run_in_executor
from latentd.errors import InvalidArgument, PermissionDenied
from latentd.latents import POSTERIOR, NoiseRange
from latentd.models.inference import ServedModel
from latentd.models.sources import PriorSamples
from latentd.pb import vae_pb2 as pb
from latentd.ranges import Counts

WithRows = (
    pb.SampleResponse
    | pb.StreamSamplesResponse
    | pb.DecodeResponse
    | pb.ReconstructResponse
    | pb.StreamReconstructResponse
    | pb.InterpolateResponse
)
"""The responses that hold rows x."""

_ABSOLUTE: Final = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+([^\s/'\"]*)")
_END = 2**63  # rows are numbered below this
_HOTTEST = 10.0  # temperature


def prior(request: pb.SampleRequest | pb.StreamSamplesRequest, rows: int) -> PriorSamples:
    """The latents that Sample decodes: `rows` rows from the request's offset on."""
    temperature = request.temperature if request.HasField("temperature") else 1.0
    if not 0.0 <= temperature <= _HOTTEST:
        raise InvalidArgument("temperature", f"{temperature:g} is not from 0 to {_HOTTEST:g}")
    return PriorSamples(draw(seed(request), request.offset, rows, "offset"), temperature)


def posterior_draw(
    request: pb.EncodeRequest | pb.ReconstructRequest | pb.ScoreRequest, rows: int
) -> NoiseRange:
    """The noise of `rows` draws around encodings."""
    return draw(seed(request), request.offset, rows, "offset", POSTERIOR)


def draw(seed: int, offset: int, rows: int, field: str, stream: int = latents.PRIOR) -> NoiseRange:
    """Rows offset .. offset + rows of a seed. Raises InvalidArgument if they exceed the last."""
    if offset + rows > _END:
        raise InvalidArgument(field, f"{offset} and {rows} rows more go beyond 2^63")
    return NoiseRange(seed, offset, rows, stream)


def seed(
    request: pb.SampleRequest
    | pb.StreamSamplesRequest
    | pb.EncodeRequest
    | pb.ReconstructRequest
    | pb.StreamReconstructRequest
    | pb.ScoreRequest,
) -> int:
    """The caller's seed, or one of our choice, which the response will name."""
    return request.seed if request.HasField("seed") else secrets.randbits(64)


def need_scope(caller: CallContext, scope: str, field: str, content: str) -> None:
    """Check that the caller's token has the scope that a field's content needs beside the method's.
    Raises PermissionDenied."""
    if caller.scopes is not None and scope not in caller.scopes:
        has = ", ".join(sorted(caller.scopes))
        raise PermissionDenied(
            f'{field}: scope "{scope}" required for {content}; this token has: {has}.'
        )


def without_folders(reason: str, root: Path) -> str:
    """A reason for callers: paths below the bundles' root are shown relative to it, and of all
    other absolute paths only the last part. Where things lie is the operator's business."""
    for folder in {str(root), str(root.absolute()), str(root.resolve())}:
        reason = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", reason)
    return _ABSOLUTE.sub(r"\1", reason)


def served_by(model: ServedModel) -> pb.ModelVersion:
    """Which model and version answers: a part of every response."""
    return pb.ModelVersion(
        model=model.manifest.model, version=model.manifest.version, digest=model.digest
    )


async def read_rows(
    rows: pb.Rows, model: ServedModel, field: str, most: int = 0
) -> tuple[codec.Array, Counts | None]:
    """x, checked, and how many values of each row lie outside the model's range; PNG files are
    decoded off the thread that receives calls."""
    x, likelihood = model.manifest.x, model.manifest.likelihood
    read = functools.partial(codec.read_rows, rows, x, likelihood, most or model.max_rows, field)
    return await run_in_executor(read) if rows.WhichOneof("content") == "png" else read()


async def write_rows(values: codec.Array, png: bool, response: WithRows) -> None:
    """Fill the response's x; PNG files are compressed off the thread that receives calls."""
    if png:
        await run_in_executor(codec.write_rows, values, png, response.x)
    else:
        codec.write_rows(values, png, response.x)
