"""Fields of responses that tell which rows are outliers, and why."""

from __future__ import annotations

import math

import numpy as np

from latentd import codec
from latentd.codec import Array
from latentd.errors import InvalidArgument
from latentd.models.inference import ServedModel
from latentd.outliers import are_outliers
from latentd.pb import vae_pb2 as pb
from latentd.rpc import fields

_Request = pb.ReconstructRequest | pb.StreamReconstructRequest | pb.ScoreRequest
_Response = pb.ReconstructResponse | pb.StreamReconstructResponse | pb.ScoreResponse


def threshold(request: _Request, model: ServedModel, scores: bool = True) -> float | None:
    """The threshold of the request, else the model's; None: there is none, or nothing to compare.
    Raises InvalidArgument.

    scores: the response has them
    """
    if request.HasField("threshold"):
        fields.require(model, "score", "threshold")
        if not math.isfinite(request.threshold):
            what = f"must be a finite number of nats, got {request.threshold:g}"
            raise InvalidArgument("threshold", what)
        if not scores:
            what = "scores are compared with it, and none are requested"
            raise InvalidArgument("threshold", what, "Set include_scores too")
        return float(request.threshold)
    chosen = model.manifest.threshold
    return chosen.reconstruction_error if chosen and scores else None


def for_size(
    threshold: float | None, request: _Request, model: ServedModel, x: Array
) -> float | None:
    """The threshold for rows x. The model's is of rows of the default size: others have none."""
    if request.HasField("threshold") or x.shape[1:] == model.manifest.default.x.shape:
        return threshold
    return None


def require_contributions(request: _Request, model: ServedModel) -> bool:
    """Whether the request asks for contributions. Raises InvalidArgument if the model cannot give
    them."""
    if request.include_contributions:
        fields.require(model, "score", "include_contributions")
        fields.require(model, "contributions", "include_contributions")
    return request.include_contributions


def write(
    threshold: float | None, error: Array, contributions: Array | None, response: _Response
) -> None:
    """Fill the response's threshold, is_outlier and contributions. error: the reconstruction error
    of each row; contributions: None: not requested."""
    if threshold is not None:
        response.threshold = threshold
        sent = error.astype(np.float32)
        response.is_outlier.extend(are_outliers(sent, threshold).tolist())
    if contributions is not None:
        codec.write_tensor(contributions, response.contributions)
