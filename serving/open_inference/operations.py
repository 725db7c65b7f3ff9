"""The operations of a model, in one table. To the protocol each is a model of its own: NAME:encode.

One rule makes the table short. An output is the field of vae.v1's response with its name. A
parameter is the field of vae.v1's request with its name. SIZES and FIT are inside of fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from latentd.models.inference import ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.rpc.methods import METHODS

SEPARATOR: Final = ":"
"""Between the name of a model and that of an operation: names of models have none."""
DEFAULT: Final = "decode"
"""The operation of a name without one."""
SIZES: Final = "sizes"
"""A parameter for each entry of that field."""
FIT: Final = "fit"
"""A parameter that is a field of x.images."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output.

    name:       of the field of the response
    sets:       fields of the request that ask for it
    needs:      capabilities without which a model cannot give it; see `unavailable` in GetModel
    on_request: a request without outputs does not get it
    """

    name: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    on_request: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    name:       after the separator
    method:     of vae.v1
    request:    that method's
    inputs:     names of the inputs, all of which a request has
    outputs:    by their names, in the order in which a request without outputs gets them
    parameters: names of the parameters; SIZES stands for sizes.AXIS, one for each free axis
    reports:    fields of the response that are parameters of the protocol's
    needs:      the capability without which a model does not have the operation
    """

    name: str
    method: str
    request: type[Message]
    inputs: tuple[str, ...]
    outputs: Mapping[str, Output]
    parameters: tuple[str, ...]
    reports: tuple[str, ...]
    needs: str = ""

    @property
    def scope(self) -> str:
        """The scope that a call's token must have."""
        return METHODS[self.method].scope

    def default_outputs(self, model: ServedModel) -> list[Output]:
        """What a request without outputs gets of this model."""
        unavailable = model.manifest.unavailable
        return [
            output
            for output in self.outputs.values()
            if not output.on_request and unavailable.keys().isdisjoint(output.needs)
        ]


def _by_name(*outputs: Output) -> Mapping[str, Output]:
    return {output.name: output for output in outputs}


_SCORES: Final = {"include_scores": True}
_OUTSIDE: Final = Output("values_outside_range", on_request=True)
_CONTRIBUTIONS: Final = Output(
    "contributions", {"include_contributions": True}, ("score", "contributions"), on_request=True
)

_TABLE: Final = (
    Operation(
        "encode",
        "Encode",
        pb.EncodeRequest,
        ("x",),
        _by_name(
            Output("mean"),
            Output("log_var", needs=("draw",)),
            Output("z", {"draw": True}, ("draw",), on_request=True),
            _OUTSIDE,
        ),
        ("seed", "offset", "float_dtype", "tiling", FIT),
        ("seed", "tiled"),
    ),
    Operation(
        "decode",
        "Decode",
        pb.DecodeRequest,
        ("z",),
        _by_name(
            Output("x"),
            Output("params", {"output": pb.DECODE_OUTPUT_PARAMS}, ("params",), on_request=True),
        ),
        ("format", "float_dtype", "tiling", "draw_x", "seed", "offset"),
        ("seed", "tiled"),
    ),
    Operation(
        "reconstruct",
        "Reconstruct",
        pb.ReconstructRequest,
        ("x",),
        _by_name(
            Output("x"),
            Output("reconstruction_error", _SCORES, ("score",)),
            Output("kl", _SCORES, ("score",)),
            Output("elbo", _SCORES, ("score",)),
            Output("is_outlier", _SCORES, ("score",), on_request=True),
            _CONTRIBUTIONS,
            _OUTSIDE,
        ),
        (
            *("draw", "seed", "offset", "format"),
            *("float_dtype", "tiling", "draw_x", "threshold", FIT),
        ),
        ("seed", "tiled", "threshold"),
    ),
    Operation(
        "score",
        "Score",
        pb.ScoreRequest,
        ("x",),
        _by_name(
            Output("elbo"),
            Output("log_likelihood"),
            Output("kl"),
            Output("reconstruction_error", on_request=True),
            Output("is_outlier", on_request=True),
            _CONTRIBUTIONS,
            _OUTSIDE,
        ),
        ("draws", "seed", "offset", "threshold", FIT),
        ("seed", "draws", "threshold"),
        needs="score",
    ),
    Operation(
        "sample",
        "Sample",
        pb.SampleRequest,
        ("seed", "index"),
        _by_name(Output("x"), Output("z", {"include_z": True}, on_request=True)),
        ("temperature", "format", SIZES, "float_dtype", "tiling", "draw_x"),
        ("tiled",),
        needs="sample",
    ),
)
OPERATIONS: Final[Mapping[str, Operation]] = {operation.name: operation for operation in _TABLE}
"""By their names."""


def split(name: str) -> tuple[str, str]:
    """The name of the model and that of the operation, which may be unknown."""
    model, _, operation = name.partition(SEPARATOR)
    return model, operation or DEFAULT


def available(model: ServedModel) -> list[str]:
    """The names of the operations that a model has."""
    unavailable = model.manifest.unavailable
    return [name for name, one in OPERATIONS.items() if one.needs not in unavailable]
