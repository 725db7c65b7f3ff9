"""What ModelMetadata, ModelConfig and RepositoryIndex respond."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from latentd.codec import DATA_TYPES
from latentd.manifest import Manifest
from latentd.models.inference import ServedModel
from latentd.models.repository import Repository
from latentd.open_inference import operations
from latentd.open_inference.datatypes import BYTES, NAMES
from latentd.open_inference.operations import SEPARATOR, Operation
from latentd.pb import open_inference_pb2 as pb
from latentd.pb import vae_pb2
from latentd.rpc import descriptions
from latentd.shapes import Shape

PLATFORM: Final = "latentd"

_STATES: Final = {
    vae_pb2.MODEL_STATE_READY: "READY",
    vae_pb2.MODEL_STATE_FAILED: "UNAVAILABLE",
    vae_pb2.MODEL_STATE_LOADING: "LOADING",
}


class Signature(NamedTuple):
    """An input or output: the shape of one row with -1 for the length of a free axis."""

    name: str
    datatype: str
    row: tuple[int, ...]


def inputs(operation: Operation, manifest: Manifest) -> list[Signature]:
    """The inputs of an operation."""
    return [_signature(name, manifest) for name in operation.inputs]


def outputs(operation: Operation, model: ServedModel) -> list[Signature]:
    """The outputs of a request that names none."""
    return [_signature(one.name, model.manifest) for one in operation.default_outputs(model)]


def _signature(name: str, manifest: Manifest) -> Signature:
    if name == "x":
        if manifest.x.is_text:
            return Signature(name, BYTES, (1,))
        return Signature(name, NAMES[DATA_TYPES[manifest.x.dtype]], _lengths(manifest.x.shape))
    if name in ("z", "mean", "log_var"):
        return Signature(name, "FP32", _lengths(manifest.z.shape))
    return Signature(name, "UINT64" if name in ("seed", "index") else "FP32", (1,))


def _lengths(shape: Shape) -> tuple[int, ...]:
    return tuple(-1 if dim.axis else dim.length for dim in shape.dims)


def metadata(
    name: str, operation: Operation, model: ServedModel, versions: list[int]
) -> pb.ModelMetadataResponse:
    """An operation of a model.

    versions: of the model, all that are served
    """
    described = pb.ModelMetadataResponse.TensorMetadata

    def tensors(signatures: list[Signature]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
        return [
            described(name=one.name, datatype=one.datatype, shape=(-1, *one.row))
            for one in signatures
        ]

    return pb.ModelMetadataResponse(
        name=name,
        versions=map(str, versions),
        platform=PLATFORM,
        inputs=tensors(inputs(operation, model.manifest)),
        outputs=tensors(outputs(operation, model)),
    )


def config(name: str, operation: Operation, model: ServedModel) -> pb.ModelConfigResponse:
    """An operation of a model, as Triton's tools want it."""

    def data_type(datatype: str) -> str:
        return f"TYPE_{'STRING' if datatype == BYTES else datatype}"

    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=name,
            backend=PLATFORM,
            max_batch_size=model.max_rows(model.manifest.default),
            input=[
                pb.ModelInput(name=one.name, data_type=data_type(one.datatype), dims=one.row)
                for one in inputs(operation, model.manifest)
            ],
            output=[
                pb.ModelOutput(name=one.name, data_type=data_type(one.datatype), dims=one.row)
                for one in outputs(operation, model)
            ],
        )
    )


def index(repository: Repository, root: Path, only_ready: bool) -> pb.RepositoryIndexResponse:
    """Every version below `root`: what is served once for each operation and once by its name
    alone, the others by their name."""
    served = {(one.manifest.model, one.manifest.version): one for one in repository.models()}
    entries = []
    for listed in descriptions.list_models(repository, root).models:
        version, state = listed.version, _STATES[listed.state]
        model = served.get((version.model, version.version)) if state == "READY" else None
        names = [version.model]
        if model is not None:
            names += [f"{version.model}{SEPARATOR}{one}" for one in operations.available(model)]
        elif only_ready:
            continue
        entries += [
            pb.RepositoryIndexResponse.ModelIndex(
                name=name, version=str(version.version), state=state, reason=listed.reason
            )
            for name in names
        ]
    return pb.RepositoryIndexResponse(models=entries)
