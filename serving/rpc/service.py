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

    They raise the errors of `latentd.errors`. `transport.handlers` calls them; it adds bytes,
    status codes and metrics.
    """

    def __init__(self, repository: Repository, engine: SessionFactory, settings: Settings) -> None:
        self._repository, self._engine, self._settings = repository, engine, settings

    async def get_model(
        self, request: pb.GetModelRequest, context: CallContext
    ) -> pb.GetModelResponse:
        model = self._repository.find(request.model, request.version, context)
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
        self, request: pb.ListModelsRequest, context: CallContext
    ) -> pb.ListModelsResponse:
        repository, root = self._repository, Path(self._settings.bundles)
        models = repository.models()
        newest = {model.manifest.model: model for model in models}  # ascending: the last one wins
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

    async def encode(self, request: pb.EncodeRequest, context: CallContext) -> pb.EncodeResponse:
        model = self._repository.find(request.model, request.version, context)
        x, out_of_range = await fields.read_rows(request.x, model, "x")
        noise = fields.posterior_noise(request, len(x)) if request.draw else None
        mean, log_var = await model.encode(x, context)
        z = None if noise is None else PosteriorSamples(mean, log_var, noise).latents()
        if (bad := finite.bad_row(mean, log_var, z)) is not None:
            raise await finite.cause(bad, "x", model.encode(x[bad : bad + 1], context))
        response = pb.EncodeResponse(served_by=fields.served_by(model))
        codec.write_tensor(mean, response.mean)
        codec.write_tensor(log_var, response.log_var)
        if noise is not None and z is not None:
            codec.write_tensor(z, response.z)
            response.seed = noise.seed
        if out_of_range is not None:
            response.values_outside_range.extend(out_of_range)
        return response

    async def decode(self, request: pb.DecodeRequest, context: CallContext) -> pb.DecodeResponse:
        model = self._repository.find(request.model, request.version, context)
        png = codec.read_format(request.format, model.manifest.x)
        z = codec.read_latents(request.z, model.manifest.latent_size, model.max_rows, "z")
        wants_params = request.output == pb.DECODE_OUTPUT_PARAMS
        if request.output not in pb.DecodeOutput.values():
            raise InvalidArgument("output", f"unknown enum value {request.output}")
        if wants_params and png:
            raise InvalidArgument("format", "params cannot be returned as PNG", "Use FORMAT_RAW")
        x, params, _ = await model.decode(GivenLatents(z), context, params=wants_params)
        if (bad := finite.bad_row(params if wants_params else x)) is not None:
            row = GivenLatents(z[bad : bad + 1])
            raise await finite.cause(bad, "z", model.decode(row, context, params=wants_params))
        response = pb.DecodeResponse(served_by=fields.served_by(model))
        if wants_params:
            codec.write_tensor(params, response.params)
        else:
            await fields.write_rows(x, png, response)
        return response

    async def sample(self, request: pb.SampleRequest, context: CallContext) -> pb.SampleResponse:
        model = self._repository.find(request.model, request.version, context)
        if not 1 <= request.count <= model.max_rows:
            raise InvalidArgument(
                "count",
                f"{request.count} rows requested; the limit is 1 to {model.max_rows} per request",
                "StreamSamples has no limit",
            )
        png = codec.read_format(request.format, model.manifest.x)
        source = fields.prior_samples(request, request.count)
        x, _, z = await model.decode(source, context)
        if finite.bad_row(x) is not None:
            raise finite.engine_error()
        response = pb.SampleResponse(
            served_by=fields.served_by(model), seed=source.draw.seed, offset=request.offset
        )
        await fields.write_rows(x, png, response)
        if request.include_z:
            codec.write_tensor(z, response.z)
        return response

    async def stream_samples(
        self, request: pb.StreamSamplesRequest, context: CallContext
    ) -> AsyncIterator[pb.StreamSamplesResponse]:
        model = self._repository.find(request.model, request.version, context)
        chunk = request.chunk_rows or min(_DEFAULT_CHUNK, model.max_rows)
        if chunk > model.max_rows:
            raise InvalidArgument("chunk_rows", f"must be at most {model.max_rows}, got {chunk}")
        if request.count < 1:
            raise InvalidArgument("count", "0 rows requested", "Request 1 or more")
        png = codec.read_format(request.format, model.manifest.x)
        source = fields.prior_samples(request, request.count)

        def submit(start: int) -> tuple[NoiseRange, Future[Outputs]]:
            noise = source.draw.slice(start, min(start + chunk, request.count))
            samples = PriorSamples(noise, source.temperature)
            return noise, model.decode(samples, context, work=request.count)

        # One chunk is decoded while the previous one is being sent, and no more. Writing waits for
        # the client, so a slow client costs the memory of two chunks, whatever its count.
        next_chunk = submit(0)
        for start in range(chunk, request.count + chunk, chunk):
            noise, outputs = next_chunk
            x, _, z = await outputs
            if finite.bad_row(x) is not None:
                raise finite.engine_error()
            if start < request.count:
                next_chunk = submit(start)
            response = pb.StreamSamplesResponse(
                served_by=fields.served_by(model), seed=noise.seed, offset=noise.offset
            )
            await fields.write_rows(x, png, response)
            if request.include_z:
                codec.write_tensor(z, response.z)
            yield response

    async def reconstruct(
        self, request: pb.ReconstructRequest, context: CallContext
    ) -> pb.ReconstructResponse:
        model = self._repository.find(request.model, request.version, context)
        png = codec.read_format(request.format, model.manifest.x)
        x, out_of_range = await fields.read_rows(request.x, model, "x")
        noise = fields.posterior_noise(request, len(x)) if request.draw else None
        result = await model.reconstruct(x, noise, request.include_scores, context)
        if (bad := finite.bad_row(*result)) is not None:
            row_noise = None if noise is None else noise.slice(bad, bad + 1)
            row = model.reconstruct(x[bad : bad + 1], row_noise, request.include_scores, context)
            raise await finite.cause(bad, "x", row)
        response = pb.ReconstructResponse(
            served_by=fields.served_by(model), seed=noise.seed if noise else 0
        )
        await fields.write_rows(result.x, png, response)
        if result.scores is not None:
            response.reconstruction_error.extend(result.scores.reconstruction_error)
            response.kl.extend(result.scores.kl)
            response.elbo.extend(result.scores.elbo)
        if out_of_range is not None:
            response.values_outside_range.extend(out_of_range)
        return response

    async def stream_reconstruct(
        self, requests: AsyncIterator[pb.StreamReconstructRequest], context: CallContext
    ) -> AsyncIterator[pb.StreamReconstructResponse]:
        first = await anext(requests, None)
        if first is None:
            return
        model = self._repository.find(first.model, first.version, context)
        stream = ReconstructStream(model, first, context)

        async def handle_next(
            request: pb.StreamReconstructRequest | None = None,
        ) -> pb.StreamReconstructResponse | None:
            request = request or await anext(requests, None)
            return None if request is None else await stream.handle(request)

        # The next message is read and run while this response is being sent, and no more: from a
        # client that does not read its responses, no further message is read.
        next_response = coroutines.create_task(handle_next(first))
        while (response := await next_response) is not None:
            next_response = coroutines.create_task(handle_next())
            yield response

    async def interpolate(
        self, request: pb.InterpolateRequest, context: CallContext
    ) -> pb.InterpolateResponse:
        model = self._repository.find(request.model, request.version, context)
        if not 2 <= request.steps <= model.max_rows:
            raise InvalidArgument(
                "steps",
                f"{request.steps} steps requested; the limit is 2 to {model.max_rows} per request",
                "Start and end count",
            )
        if request.path not in pb.InterpolationPath.values():
            raise InvalidArgument("path", f"unknown enum value {request.path}")
        png = codec.read_format(request.format, model.manifest.x)
        start, start_out_of_range = await _anchor_latent(model, request.start, "start", context)
        end, end_out_of_range = await _anchor_latent(model, request.end, "end", context)
        straight = request.path == pb.INTERPOLATION_PATH_LERP
        path = (latents.lerp if straight else latents.slerp)(start, end, request.steps)
        x, _, _ = await model.decode(GivenLatents(path), context)
        if (bad := finite.bad_row(path, x)) is not None:
            anchors = (("start", request.start, start), ("end", request.end, end))
            given = [
                (float(np.abs(z).max()), name)
                for name, anchor, z in anchors
                if anchor.WhichOneof("point") != "sample"
            ]
            if not given:
                raise finite.engine_error()
            _, farthest = max(given)
            step = model.decode(GivenLatents(path[bad : bad + 1]), context)
            raise await finite.cause(bad, farthest, step, "step")
        response = pb.InterpolateResponse(served_by=fields.served_by(model))
        await fields.write_rows(x, png, response)
        if request.include_z:
            codec.write_tensor(path, response.z)
        if start_out_of_range or end_out_of_range:
            response.values_outside_range.extend((start_out_of_range, end_out_of_range))
        return response

    async def score(self, request: pb.ScoreRequest, context: CallContext) -> pb.ScoreResponse:
        model = self._repository.find(request.model, request.version, context)
        x, out_of_range = await fields.read_rows(request.x, model, "x")
        draws = request.draws or _DEFAULT_DRAWS
        max_draws = min(self._settings.max_draws, model.max_rows * 64 // len(x))
        if draws > max_draws:
            raise InvalidArgument(
                "draws", f"{draws} requested; the limit for {len(x)} rows is {max_draws}"
            )
        noise = fields.posterior_noise(request, len(x))
        scores = await model.score(x, draws, noise, context)
        if (bad := finite.bad_row(*scores)) is not None:
            row = model.score(x[bad : bad + 1], draws, noise.slice(bad, bad + 1), context)
            raise await finite.cause(bad, "x", row)
        return pb.ScoreResponse(
            served_by=fields.served_by(model),
            elbo=scores.elbo,
            log_likelihood=scores.log_likelihood,
            kl=scores.kl,
            seed=noise.seed,
            draws=draws,
            values_outside_range=out_of_range,
        )


async def _anchor_latent(
    model: ServedModel, anchor: pb.LatentAnchor, field: str, context: CallContext
) -> tuple[Latents, int]:
    """The latent of one end of an interpolation, shape (latent size,). If it is given as data, also
    how many of its values lie outside the model's range, else 0."""
    kind, out_of_range = anchor.WhichOneof("point"), 0
    if kind == "x":
        # The response reveals the encoding: exactly with include_z, else in what is decoded.
        fields.require_scope(context, INFER, f"{field}.x", "an anchor given as data")
        x, counts = await fields.read_rows(anchor.x, model, f"{field}.x", max_rows=1)
        out_of_range = 0 if counts is None else int(counts[0])
        z, _ = await model.encode(x, context)
        if finite.bad_row(z) is not None:
            raise await finite.cause(0, f"{field}.x", model.encode(x, context))
    elif kind == "z":
        z = codec.read_latents(anchor.z, model.manifest.latent_size, 1, f"{field}.z")
    elif kind == "sample":
        sample = anchor.sample
        noise = fields.noise_range(sample.seed, sample.index, 1, f"{field}.sample.index")
        z = latents.standard_normal([noise], model.manifest.latent_size)
    else:
        raise InvalidArgument(field, "missing", "Send one row x, one latent z, or a sample's seed")
    latent: Latents = z.reshape(-1)
    return latent, out_of_range
