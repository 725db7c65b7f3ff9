"""The RPCs: convert, call, convert. Each method is one line of the contract in protos/."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from latentd import codec, latents
from latentd.batching.runner import Outputs
from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.errors import InvalidArgument
from latentd.latents import Latents, NoiseRange
from latentd.models.inference import ServedModel
from latentd.models.repository import Repository
from latentd.models.sources import GivenLatents, PosteriorSamples, PriorSamples
from latentd.pb import vae_pb2 as pb
from latentd.rpc import fields, finite
from latentd.rpc.methods import INFER
from latentd.rpc.stream_reconstruct import ReconstructStream
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

_DEFAULT_DRAWS = 16
_DEFAULT_CHUNK = 256


class VaeService:
    """The methods of vae.v1.VaeService, each as protos/vae/v1/vae.proto describes it, on messages.

    They raise the errors of `latentd.errors`; `wire` gives them bytes, codes and metrics.
    """

    def __init__(self, repository: Repository, engine: SessionFactory, settings: Settings) -> None:
        self._repository, self._engine, self._settings = repository, engine, settings

    async def get_model(
        self, request: pb.GetModelRequest, caller: CallContext
    ) -> pb.GetModelResponse:
        model = self._repository.find(request.model, request.version, caller)
        manifest = model.manifest
        return pb.GetModelResponse(
            served_by=fields.served_by(model),
            family=manifest.family,
            kind=manifest.x.kind,
            x_shape=manifest.x.shape,
            x_dtype=codec.DATA_TYPES[manifest.x.dtype],
            x_min=manifest.x.range[0],
            x_max=manifest.x.range[1],
            latent_size=manifest.latent_size,
            likelihood=manifest.likelihood,
            params_per_element=model.params_per_element,
            limits=pb.Limits(
                max_rows=model.max_rows,
                max_message_bytes=self._settings.max_message_bytes,
                max_draws=self._settings.max_draws,
            ),
            provider=self._engine.provider,
            versions=self._repository.versions(manifest.model),
            profiles=[
                pb.GraphProfile(
                    graph=batcher.name,
                    max_batch_rows=batcher.batch_rows,
                    costs=[pb.BatchTiming(rows=c.rows, seconds=c.seconds) for c in profile.timings],
                )
                for batcher, profile in model.batchers()
            ],
            preprocessing=manifest.preprocessing,
            created=manifest.created,
            training_scores=pb.TrainingScores(**manifest.training_scores),
        )

    async def list_models(
        self, request: pb.ListModelsRequest, caller: CallContext
    ) -> pb.ListModelsResponse:
        repository, root = self._repository, Path(self._settings.bundles)
        models = repository.models()
        newest = {model.manifest.model: model for model in models}  # the last of each
        ready = [
            pb.ListedModel(
                version=fields.served_by(model),
                state=pb.MODEL_STATE_READY,
                newest=model is newest[model.manifest.model],
                default=model.manifest.model == repository.default,
            )
            for model in models
        ]
        rejected = [
            pb.ListedModel(
                version=pb.ModelVersion(model=entry.model, version=entry.version),
                state=pb.MODEL_STATE_FAILED,
                reason=fields.without_folders(entry.reason, root),
            )
            for entry in repository.rejected()
        ]
        loading = [
            pb.ListedModel(
                version=pb.ModelVersion(model=load.model, version=load.version),
                state=pb.MODEL_STATE_LOADING,
                loading_since=load.since,
            )
            for load in repository.loading()
        ]
        return pb.ListModelsResponse(models=ready + rejected + loading)

    async def encode(self, request: pb.EncodeRequest, caller: CallContext) -> pb.EncodeResponse:
        model = self._repository.find(request.model, request.version, caller)
        x, outside = await fields.read_rows(request.x, model, "x")
        draw = fields.posterior_draw(request, len(x)) if request.draw else None
        mean, log_var = await model.encode(x, caller)
        z = None if draw is None else PosteriorSamples(mean, log_var, draw).latents()
        if (bad := finite.bad_row(mean, log_var, z)) is not None:
            raise await finite.cause(bad, "x", model.encode(x[bad : bad + 1], caller))
        response = pb.EncodeResponse(served_by=fields.served_by(model))
        codec.write_tensor(mean, response.mean)
        codec.write_tensor(log_var, response.log_var)
        if draw is not None and z is not None:
            codec.write_tensor(z, response.z)
            response.seed = draw.seed
        if outside is not None:
            response.values_outside_range.extend(outside)
        return response

    async def decode(self, request: pb.DecodeRequest, caller: CallContext) -> pb.DecodeResponse:
        model = self._repository.find(request.model, request.version, caller)
        png = codec.read_format(request.format, model.manifest.x)
        z = codec.read_latents(request.z, model.manifest.latent_size, model.max_rows, "z")
        wants_params = request.output == pb.DECODE_OUTPUT_PARAMS
        if request.output not in pb.DecodeOutput.values():
            raise InvalidArgument("output", f"{request.output} is not one of this contract")
        if wants_params and png:
            raise InvalidArgument("format", "parameters are no image", "Ask for FORMAT_RAW")
        x, params, _ = await model.decode(GivenLatents(z), caller, params=wants_params)
        if (bad := finite.bad_row(params if wants_params else x)) is not None:
            row = GivenLatents(z[bad : bad + 1])
            raise await finite.cause(bad, "z", model.decode(row, caller, params=wants_params))
        response = pb.DecodeResponse(served_by=fields.served_by(model))
        if wants_params:
            codec.write_tensor(params, response.params)
        else:
            await fields.write_rows(x, png, response)
        return response

    async def sample(self, request: pb.SampleRequest, caller: CallContext) -> pb.SampleResponse:
        model = self._repository.find(request.model, request.version, caller)
        if not 1 <= request.count <= model.max_rows:
            raise InvalidArgument(
                "count",
                f"{request.count} was asked for, 1 to {model.max_rows} are served in one request",
                "StreamSamples gives any number",
            )
        png = codec.read_format(request.format, model.manifest.x)
        source = fields.prior(request, request.count)
        x, _, z = await model.decode(source, caller)
        if finite.bad_row(x) is not None:
            raise finite.not_from_the_request()
        response = pb.SampleResponse(
            served_by=fields.served_by(model), seed=source.draw.seed, offset=request.offset
        )
        await fields.write_rows(x, png, response)
        if request.include_z:
            codec.write_tensor(z, response.z)
        return response

    async def stream_samples(
        self, request: pb.StreamSamplesRequest, caller: CallContext
    ) -> AsyncIterator[pb.StreamSamplesResponse]:
        model = self._repository.find(request.model, request.version, caller)
        chunk = request.chunk_rows or min(_DEFAULT_CHUNK, model.max_rows)
        if chunk > model.max_rows:
            raise InvalidArgument("chunk_rows", f"{chunk} is more than {model.max_rows}")
        if request.count < 1:
            raise InvalidArgument("count", "0 rows were asked for", "Ask for 1 or more")
        png = codec.read_format(request.format, model.manifest.x)
        source = fields.prior(request, request.count)

        def begin(start: int) -> tuple[NoiseRange, Future[Outputs]]:
            part = source.draw.part(start, min(start + chunk, request.count))
            prior = PriorSamples(part, source.temperature)
            return part, model.decode(prior, caller, work=request.count)

        # One chunk is made while the one before is being sent, and no more: the writer waits for
        # the reader, so a slow one costs two chunks of memory however many rows it asked for.
        ahead = begin(0)
        for start in range(chunk, request.count + chunk, chunk):
            part, reply = ahead
            x, _, z = await reply
            if finite.bad_row(x) is not None:
                raise finite.not_from_the_request()
            if start < request.count:
                ahead = begin(start)
            response = pb.StreamSamplesResponse(
                served_by=fields.served_by(model), seed=part.seed, offset=part.offset
            )
            await fields.write_rows(x, png, response)
            if request.include_z:
                codec.write_tensor(z, response.z)
            yield response

    async def reconstruct(
        self, request: pb.ReconstructRequest, caller: CallContext
    ) -> pb.ReconstructResponse:
        model = self._repository.find(request.model, request.version, caller)
        png = codec.read_format(request.format, model.manifest.x)
        x, outside = await fields.read_rows(request.x, model, "x")
        draw = fields.posterior_draw(request, len(x)) if request.draw else None
        made = await model.reconstruct(x, draw, request.include_scores, caller)
        if (bad := finite.bad_row(*made)) is not None:
            part = None if draw is None else draw.part(bad, bad + 1)
            row = model.reconstruct(x[bad : bad + 1], part, request.include_scores, caller)
            raise await finite.cause(bad, "x", row)
        response = pb.ReconstructResponse(
            served_by=fields.served_by(model), seed=draw.seed if draw else 0
        )
        await fields.write_rows(made.x, png, response)
        if made.scores is not None:
            response.reconstruction_error.extend(made.scores.reconstruction_error)
            response.kl.extend(made.scores.kl)
            response.elbo.extend(made.scores.elbo)
        if outside is not None:
            response.values_outside_range.extend(outside)
        return response

    async def stream_reconstruct(
        self, requests: AsyncIterator[pb.StreamReconstructRequest], caller: CallContext
    ) -> AsyncIterator[pb.StreamReconstructResponse]:
        first = await anext(requests, None)
        if first is None:
            return
        model = self._repository.find(first.model, first.version, caller)
        stream = ReconstructStream(model, first, caller)

        async def following(
            request: pb.StreamReconstructRequest | None = None,
        ) -> pb.StreamReconstructResponse | None:
            request = request or await anext(requests, None)
            return None if request is None else await stream.answer(request)

        # The next message is read and run while this answer is being sent, and no other: a caller
        # that does not read is not read either.
        ahead = coroutines.create_task(following(first))
        while (response := await ahead) is not None:
            ahead = coroutines.create_task(following())
            yield response

    async def interpolate(
        self, request: pb.InterpolateRequest, caller: CallContext
    ) -> pb.InterpolateResponse:
        model = self._repository.find(request.model, request.version, caller)
        if not 2 <= request.steps <= model.max_rows:
            raise InvalidArgument(
                "steps",
                f"{request.steps} was asked for, 2 to {model.max_rows} are served in one request",
                "Both end points count",
            )
        if request.path not in pb.InterpolationPath.values():
            raise InvalidArgument("path", f"{request.path} is not one of this contract")
        png = codec.read_format(request.format, model.manifest.x)
        start, start_outside = await _end_point(model, request.start, "start", caller)
        end, end_outside = await _end_point(model, request.end, "end", caller)
        straight = request.path == pb.INTERPOLATION_PATH_LERP
        way = (latents.lerp if straight else latents.slerp)(start, end, request.steps)
        x, _, _ = await model.decode(GivenLatents(way), caller)
        if (bad := finite.bad_row(way, x)) is not None:
            points = (("start", request.start, start), ("end", request.end, end))
            given = [
                (float(np.abs(z).max()), name)
                for name, point, z in points
                if point.WhichOneof("point") != "sample"
            ]
            if not given:
                raise finite.not_from_the_request()
            _, farthest = max(given)
            step = model.decode(GivenLatents(way[bad : bad + 1]), caller)
            raise await finite.cause(bad, farthest, step, "step")
        response = pb.InterpolateResponse(served_by=fields.served_by(model))
        await fields.write_rows(x, png, response)
        if request.include_z:
            codec.write_tensor(way, response.z)
        if start_outside or end_outside:
            response.values_outside_range.extend((start_outside, end_outside))
        return response

    async def score(self, request: pb.ScoreRequest, caller: CallContext) -> pb.ScoreResponse:
        model = self._repository.find(request.model, request.version, caller)
        x, outside = await fields.read_rows(request.x, model, "x")
        draws = request.draws or _DEFAULT_DRAWS
        most = min(self._settings.max_draws, model.max_rows * 64 // len(x))
        if draws > most:
            raise InvalidArgument("draws", f"{draws} is more than {most} for {len(x)} rows")
        draw = fields.posterior_draw(request, len(x))
        scores = await model.score(x, draws, draw, caller)
        if (bad := finite.bad_row(*scores)) is not None:
            row = model.score(x[bad : bad + 1], draws, draw.part(bad, bad + 1), caller)
            raise await finite.cause(bad, "x", row)
        return pb.ScoreResponse(
            served_by=fields.served_by(model),
            elbo=scores.elbo,
            log_likelihood=scores.log_likelihood,
            kl=scores.kl,
            seed=draw.seed,
            draws=draws,
            values_outside_range=outside,
        )


async def _end_point(
    model: ServedModel, point: pb.LatentAnchor, field: str, caller: CallContext
) -> tuple[Latents, int]:
    """The latent of one end of an interpolation, shape (latent size,), and how many values of the
    data it was given as lie outside the model's range."""
    kind, outside = point.WhichOneof("point"), 0
    if kind == "x":
        # The answer holds what Encode gives: with include_z exactly, and else in what is decoded.
        fields.need_scope(caller, INFER, f"{field}.x", "an end point given as data")
        x, counts = await fields.read_rows(point.x, model, f"{field}.x", most=1)
        outside = 0 if counts is None else int(counts[0])
        z, _ = await model.encode(x, caller)
        if finite.bad_row(z) is not None:
            raise await finite.cause(0, f"{field}.x", model.encode(x, caller))
    elif kind == "z":
        z = codec.read_latents(point.z, model.manifest.latent_size, 1, f"{field}.z")
    elif kind == "sample":
        draw = fields.draw(point.sample.seed, point.sample.index, 1, f"{field}.sample.index")
        z = latents.standard_normal([draw], model.manifest.latent_size)
    else:
        raise InvalidArgument(field, "missing", "Send one row x, one latent z, or a sample's seed")
    point_z: Latents = z.reshape(-1)
    return point_z, outside
