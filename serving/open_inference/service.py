"""The methods of inference.GRPCInferenceService: convert, call vae.v1, convert."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import numpy as np

import latentd
from latentd.calls.context import CallContext
from latentd.calls.coroutines import run_in_executor
from latentd.codec import Array
from latentd.errors import InvalidArgument, ModelNotFound
from latentd.latents import NoiseRange, NoiseRows
from latentd.models.inference import ServedModel
from latentd.models.repository import Repository
from latentd.open_inference import descriptions, operations, parameters, tensors
from latentd.open_inference.operations import OPERATIONS, SEPARATOR, Operation, Output
from latentd.open_inference.statistics import Statistics
from latentd.open_inference.tensors import Input, Values
from latentd.pb import open_inference_pb2 as pb
from latentd.pb import vae_pb2
from latentd.rpc import fields
from latentd.rpc.service import VaeService
from latentd.settings import Settings

EXTENSIONS: Final = ("model_configuration", "model_repository", "statistics")
"""Triton's names of what this server has beyond the protocol's core."""

_REQUEST_FIELDS: Final = (
    (re.compile(r"^x\.(images\.files|text\.texts|tensor)"), "x"),
    (re.compile(r"^x\.images\.fit$"), "fit"),
    (re.compile(r"^([xz])\.data$"), r"\1"),
    (re.compile(r"^([xz])\.dtype$"), r"\1.datatype"),
    (re.compile(r'^sizes\["(.*)"\]$'), r"sizes.\1"),
    (re.compile(r"^count$"), "seed"),
)
"""Fields of vae.v1's requests, and what they are in the protocol's."""


class OpenInferenceService:
    """The methods of inference.GRPCInferenceService, each as protos/inference describes it, on
    messages. `transport.health` has ServerLive and ServerReady.

    They raise the errors of `latentd.errors`.
    """

    def __init__(self, service: VaeService, repository: Repository, settings: Settings) -> None:
        self._repository, self._settings = repository, settings
        self._methods: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "Encode": service.encode,
            "Decode": service.decode,
            "Sample": service.sample,
            "Reconstruct": service.reconstruct,
            "Score": service.score,
        }
        self._statistics = Statistics()

    async def server_metadata(
        self, request: pb.ServerMetadataRequest, context: CallContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="latentd", version=latentd.__version__, extensions=EXTENSIONS
        )

    async def model_ready(
        self, request: pb.ModelReadyRequest, context: CallContext
    ) -> pb.ModelReadyResponse:
        try:
            self._described(request.name, request.version)
        except (InvalidArgument, ModelNotFound):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, context: CallContext
    ) -> pb.ModelMetadataResponse:
        operation, model = self._described(request.name, request.version)
        versions = self._repository.versions(model.manifest.model)
        return descriptions.metadata(request.name, operation, model, versions)

    async def model_config(
        self, request: pb.ModelConfigRequest, context: CallContext
    ) -> pb.ModelConfigResponse:
        operation, model = self._described(request.name, request.version)
        return descriptions.config(request.name, operation, model)

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: CallContext
    ) -> pb.ModelStatisticsResponse:
        if request.name:
            _, model = self._described(request.name, request.version)
            names = [(request.name, operations.split(request.name)[1], model)]
        else:
            names = [
                (f"{model.manifest.model}{SEPARATOR}{operation}", operation, model)
                for model in self._repository.models()
                for operation in operations.available(model)
            ]
        return pb.ModelStatisticsResponse(
            model_stats=[
                self._statistics.describe(
                    name, (model.manifest.model, model.manifest.version, operation)
                )
                for name, operation, model in names
            ]
        )

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: CallContext
    ) -> pb.RepositoryIndexResponse:
        if request.repository_name:
            raise InvalidArgument("repository_name", "there is one repository", "Leave it empty")
        return descriptions.index(
            self._repository, Path(self._settings.bundles), only_ready=request.ready
        )

    async def model_infer(
        self, request: pb.ModelInferRequest, context: CallContext
    ) -> pb.ModelInferResponse:
        started_at, ok = time.monotonic(), False
        operation = _operation(request.model_name)
        fields.require_scope(context, operation.scope, "model_name", f"{operation.name} requests")
        try:
            response = await self._infer(operation, request, context)
            ok = True
        except InvalidArgument as error:
            raise InvalidArgument(_field(error.field), error.what, error.hint) from None
        finally:
            if served_by := context.stats.served_by:
                key = served_by.model, served_by.version, operation.name
                seconds = time.monotonic() - started_at
                self._statistics.add(key, context.stats, seconds, ok)
        return response

    async def _infer(
        self, operation: Operation, request: pb.ModelInferRequest, context: CallContext
    ) -> pb.ModelInferResponse:
        name, _ = operations.split(request.model_name)
        version = _version(request.model_version)
        # Only to see what it can do: the method finds and keeps the model that answers.
        model = self._repository.peek(name, version)
        outputs = _outputs(operation, request, model)
        asked: Any = operation.request(model=name, version=version)
        if model.manifest.x.is_text and "format" in operation.parameters:
            asked.format = vae_pb2.FORMAT_TEXT
        for output in outputs:
            for field, value in output.sets.items():
                setattr(asked, field, value)
        parameters.apply(request.parameters, operation, asked, context)
        inputs = tensors.read_inputs(request, operation.inputs)
        further: tuple[Any, ...] = ()
        if operation.inputs == ("seed", "index"):
            further = (self._noise(inputs[0], inputs[1], asked),)
        elif request.raw_input_contents:
            self._fill(asked, inputs[0], model)
        else:  # typed contents are slow to read
            await run_in_executor(self._fill, asked, inputs[0], model)
        answer = await self._methods[operation.method](asked, context, *further)
        return _response(request, operation, outputs, inputs[0].shape[0], answer)

    def _fill(self, asked: Any, tensor: Input, model: ServedModel) -> None:
        """Fill the input x or z of vae.v1's request."""
        if tensor.name == "z":
            tensor.write_tensor(asked.z)
        else:
            tensor.write_rows(asked.x, model.manifest.x.is_text, self._settings.max_rows)

    def _noise(self, seed: Input, index: Input, asked: Any) -> NoiseRange | NoiseRows:
        """The rows to sample, each by its seed and index."""
        seeds = seed.integers(self._settings.max_rows)
        indices = index.integers(self._settings.max_rows)
        if len(seeds) != len(indices):
            what = f"{len(indices)} rows sent, and seed has {len(seeds)}"
            raise InvalidArgument("index", what, "Send one of each for every row")
        asked.count = len(seeds)
        if len(seeds) == 1 or _is_range(seeds, indices):
            return NoiseRange(int(seeds[0]), int(indices[0]), len(seeds))
        return NoiseRows(seeds, indices)

    def _described(self, name: str, version: str) -> tuple[Operation, ServedModel]:
        """An operation, and a model that has it. Raises InvalidArgument, ModelNotFound."""
        operation = _operation(name, "name")
        model = self._repository.peek(operations.split(name)[0], _version(version, "version"))
        if operation.needs:
            fields.require(model, operation.needs, "name")
        return operation, model


def _operation(model_name: str, field: str = "model_name") -> Operation:
    model, name = operations.split(model_name)
    operation = OPERATIONS.get(name)
    if operation is None:
        raise InvalidArgument(
            field,
            f"unknown operation {name!r}",
            f"Use {model}{SEPARATOR} and one of: {', '.join(OPERATIONS)}",
        )
    return operation


def _version(version: str, field: str = "model_version") -> int:
    """The number in a request; "" is 0, the newest."""
    if not version:
        return 0
    if not re.fullmatch("[0-9]{1,9}", version):
        raise InvalidArgument(
            field, f"expected a decimal number, got {version!r}", "Leave it empty for the newest"
        )
    return int(version)


def _outputs(
    operation: Operation, request: pb.ModelInferRequest, model: ServedModel
) -> list[Output]:
    """The requested outputs, in that order. Raises InvalidArgument."""
    if not request.outputs:
        return operation.default_outputs(model)
    known = operation.outputs
    found: dict[str, Output] = {}
    for requested in request.outputs:
        name = requested.name
        output = known.get(name)
        if output is None or name in found:
            what = "requested twice" if output else "this operation has no such output"
            hint = f"Its outputs are: {', '.join(known)}"
            raise InvalidArgument(f'outputs["{name}"]', what, hint)
        if requested.parameters:
            parameters.check_of_output(requested.parameters, f'outputs["{name}"]')
        for capability in output.needs:
            fields.require(model, capability, f'outputs["{name}"]')
        found[name] = output
    if "params" in found and len(found) > 1:
        raise InvalidArgument(
            'outputs["params"]', "is not computed together with x", "Send a request for each"
        )
    return list(found.values())


def _is_range(seeds: Array, indices: Array) -> bool:
    """Whether the rows have one seed, and indices that follow each other."""
    wraps = int(indices[0]) + len(seeds) > 2**64
    return not wraps and bool((seeds == seeds[0]).all() and (np.diff(indices) == 1).all())


def _response(
    request: pb.ModelInferRequest,
    operation: Operation,
    outputs: list[Output],
    rows: int,
    answer: Any,
) -> pb.ModelInferResponse:
    served_by = answer.served_by
    model = served_by.model
    if SEPARATOR in request.model_name:
        model += SEPARATOR + operation.name
    response = pb.ModelInferResponse(
        model_name=model, model_version=str(served_by.version), id=request.id
    )
    described, contents = response.outputs, response.raw_output_contents
    for output in outputs:
        datatype, shape, data = _values(output.name, answer, rows)
        described.add(name=output.name, datatype=datatype, shape=shape)
        contents.append(data)
    response.parameters["digest"].string_param = served_by.digest
    for name in operation.reports:
        _report(name, answer, response)
    return response


def _values(name: str, answer: Any, rows: int) -> Values:
    """One output of vae.v1's response. Raises InvalidArgument if it was not computed."""
    value = getattr(answer, name)
    if isinstance(value, vae_pb2.Tensor):
        return tensors.of_tensor(value)
    if isinstance(value, vae_pb2.Rows):
        return tensors.of_rows(value)
    if name == "values_outside_range":
        return tensors.of_numbers(value or [0] * rows, "UINT32")
    if not value:
        raise InvalidArgument(
            f'outputs["{name}"]',
            "rows are compared with a threshold, and neither the request nor the bundle has one",
            "Send the parameter threshold",
        )
    return tensors.of_numbers(value, "BOOL" if name == "is_outlier" else "FP32")


def _report(name: str, answer: Any, response: pb.ModelInferResponse) -> None:
    """Add a parameter about all rows of the response, if vae.v1's response has it: an int64 or a
    string, as KServe's client fails on others."""
    value = getattr(answer, name)
    if name == "threshold":
        if answer.HasField(name):
            response.parameters[name].string_param = repr(value)
    elif not value:
        return
    elif name == "tiled":
        tiled = vae_pb2.Tiled.Name(value).removeprefix("TILED_").lower()
        response.parameters[name].string_param = tiled
    elif value < 2**63:
        response.parameters[name].int64_param = value
    else:
        response.parameters[name].string_param = str(value)


def _field(field: str) -> str:
    for pattern, replacement in _REQUEST_FIELDS:
        field = pattern.sub(replacement, field)
    return field
