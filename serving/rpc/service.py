"""The RPCs: convert, call, convert. Each method is one line of the contract in protos/."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from latentd import codec, latents
from latentd.batching.runner import Outputs
from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future, run_in_executor
from latentd.decoding import TeacherForced
from latentd.errors import InvalidArgument
from latentd.latents import Noise, NoiseRange
from latentd.metrics import Metrics
from latentd.models.repository import Repository
from latentd.models.sources import GivenLatents, PosteriorSamples, PriorSamples
from latentd.pb import vae_pb2 as pb
from latentd.rpc import anchors, descriptions, fields, finite, outliers
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

    def __init__(
        self, repository: Repository, engine: SessionFactory, settings: Settings, metrics: Metrics
    ) -> None:
        self._repository, self._engine, self._settings = repository, engine, settings
        self._nonfinite = finite.NonfiniteRows(metrics)

    async def get_model(
        self, request: pb.GetModelRequest, context: CallContext
    ) -> pb.GetModelResponse:
        model = self._repository.find(request.model, request.version, context)
        return descriptions.get_model(
            model, self._repository, self._engine.provider, self._settings
        )

    async def list_models(
        self, request: pb.ListModelsRequest, context: CallContext
    ) -> pb.ListModelsResponse:
        return descriptions.list_models(self._repository, Path(self._settings.bundles))

    async def get_map(self, request: pb.GetMapRequest, context: CallContext) -> pb.GetMapResponse:
        model = self._repository.find(request.model, request.version, context)
        fields.require(model, "map", "model")
        return await run_in_executor(descriptions.get_map, model, self._settings)

    async def encode(self, request: pb.EncodeRequest, context: CallContext) -> pb.EncodeResponse:
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        if request.draw:
            fields.require(model, "draw", "draw")
        float_dtype = codec.read_float_dtype(request.float_dtype)
        x, out_of_range = await fields.read_rows(request.x, model, "x")
        noise = fields.posterior_noise(request, len(x)) if request.draw else None
        mean, log_var = await model.encode(x, context)
        z = None if noise is None else PosteriorSamples(mean, log_var, noise).latents()
        if (bad := finite.bad_row(mean, log_var, z)) is not None:
            self._nonfinite.add(model, encoder=(mean, log_var, z))
            raise await finite.cause(bad, "x", model.encode(x[bad : bad + 1], context))
        if float_dtype:
            mean, log_var, z = await fields.narrowed(float_dtype, mean, log_var, z)
        response = pb.EncodeResponse(served_by=model.served_by, tiled=fields.tiled(model))
        codec.write_tensor(mean, response.mean)
        if log_var is not None:
            codec.write_tensor(log_var, response.log_var)
        if noise is not None and z is not None:
            codec.write_tensor(z, response.z)
            response.seed = noise.seed
        if out_of_range is not None:
            response.values_outside_range.extend(out_of_range)
        return response

    async def decode(self, request: pb.DecodeRequest, context: CallContext) -> pb.DecodeResponse:
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        form = codec.read_format(request.format, model.manifest.default.x)
        float_dtype = codec.read_float_dtype(request.float_dtype)
        z, shapes = await fields.read_latents(request.z, model, "z")
        wants_params = request.output == pb.DECODE_OUTPUT_PARAMS
        if wants_params:
            fields.require(model, "params", "output")
        if request.output not in pb.DecodeOutput.values():
            raise InvalidArgument("output", f"unknown enum value {request.output}")
        if wants_params and form != pb.FORMAT_RAW:
            raise InvalidArgument(
                "format", "params cannot be returned as image files", "Use FORMAT_RAW"
            )
        if not wants_params:
            fields.require_room(shapes, model, "z.shape", form, float_dtype)
        needs_score_output = wants_params or finite.needs_score_output(model, z)
        noise = fields.posterior_noise(request, len(z)) if request.draw_x else None
        decoding = fields.sampled(request, model, noise) if noise else None
        x, params, _ = await model.decode(
            GivenLatents(z), shapes, context, score_output=needs_score_output, decoding=decoding
        )
        checked = (None if wants_params else x, params if needs_score_output else None)
        if (bad := finite.bad_row(*checked)) is not None:
            self._nonfinite.add(model, decoder=checked)
            row = GivenLatents(z[bad : bad + 1])
            alone = model.decode(row, shapes, context, score_output=needs_score_output)
            raise await finite.cause(bad, "z", alone)
        if float_dtype and wants_params:
            (params,) = await fields.narrowed(float_dtype, params)
        elif float_dtype:
            (x,) = await fields.narrowed(float_dtype, x)
        response = pb.DecodeResponse(
            served_by=model.served_by,
            tiled=fields.tiled(model),
            seed=noise.seed if noise else 0,
        )
        if wants_params:
            codec.write_tensor(params, response.params)
        else:
            await fields.write_rows(x, form, response)
        return response

    async def sample(
        self, request: pb.SampleRequest, context: CallContext, noise: Noise | None = None
    ) -> pb.SampleResponse:
        """noise: the rows to sample, `count` of them, in place of the request's seed and offset."""
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        fields.require(model, "sample", "model")
        shapes = fields.shapes_at(request.sizes, model)
        max_rows = model.max_rows(shapes)
        if not 1 <= request.count <= max_rows:
            raise InvalidArgument(
                "count",
                f"{request.count} rows requested; the limit is 1 to {max_rows} per request",
                "StreamSamples has no limit",
            )
        form = codec.read_format(request.format, shapes.x)
        float_dtype = codec.read_float_dtype(request.float_dtype)
        fields.require_room(shapes, model, "sizes", form, float_dtype)
        noise = noise or fields.prior_noise(request, request.count)
        source = PriorSamples(noise, fields.temperature(request))
        decoding = fields.sampled(request, model, noise)
        x, score_output, z = await model.decode(
            source, shapes, context, score_output=model.checks_score_output, decoding=decoding
        )
        checked = (x, score_output if model.checks_score_output else None)
        if finite.bad_row(*checked) is not None:
            self._nonfinite.add(model, decoder=checked)
            raise finite.engine_error()
        if float_dtype:
            x, z = await fields.narrowed(float_dtype, x, z if request.include_z else None)
        response = pb.SampleResponse(
            served_by=model.served_by,
            tiled=fields.tiled(model),
        )
        if isinstance(noise, NoiseRange):
            response.seed, response.offset = noise.seed, noise.offset
        await fields.write_rows(x, form, response)
        if request.include_z:
            codec.write_tensor(z, response.z)
        return response

    async def stream_samples(
        self, request: pb.StreamSamplesRequest, context: CallContext
    ) -> AsyncIterator[pb.StreamSamplesResponse]:
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        fields.require(model, "sample", "model")
        shapes = fields.shapes_at(request.sizes, model)
        max_rows = model.max_rows(shapes)
        chunk = request.chunk_rows or min(_DEFAULT_CHUNK, max_rows)
        if chunk > max_rows:
            raise InvalidArgument("chunk_rows", f"must be at most {max_rows}, got {chunk}")
        if request.count < 1:
            raise InvalidArgument("count", "0 rows requested", "Request 1 or more")
        form = codec.read_format(request.format, shapes.x)
        float_dtype = codec.read_float_dtype(request.float_dtype)
        fields.require_room(shapes, model, "sizes", form, float_dtype)
        all_noise = fields.prior_noise(request, request.count)
        temperature = fields.temperature(request)

        def submit(start: int) -> tuple[NoiseRange, Future[Outputs]]:
            noise = all_noise.slice(start, min(start + chunk, request.count))
            samples = PriorSamples(noise, temperature)
            return noise, model.decode(
                samples,
                shapes,
                context,
                score_output=model.checks_score_output,
                work=request.count,
                decoding=fields.sampled(request, model, noise),
            )

        # One chunk is decoded while the previous one is being sent, and no more. Writing waits for
        # the client, so a slow client costs the memory of two chunks, whatever its count.
        next_chunk = submit(0)
        for start in range(chunk, request.count + chunk, chunk):
            noise, outputs = next_chunk
            x, score_output, z = await outputs
            checked = (x, score_output if model.checks_score_output else None)
            if finite.bad_row(*checked) is not None:
                self._nonfinite.add(model, decoder=checked)
                raise finite.engine_error()
            if start < request.count:
                next_chunk = submit(start)
            if float_dtype:
                x, z = await fields.narrowed(float_dtype, x, z if request.include_z else None)
            response = pb.StreamSamplesResponse(
                served_by=model.served_by,
                seed=noise.seed,
                offset=noise.offset,
                tiled=fields.tiled(model),
            )
            await fields.write_rows(x, form, response)
            if request.include_z:
                codec.write_tensor(z, response.z)
            yield response

    async def reconstruct(
        self, request: pb.ReconstructRequest, context: CallContext
    ) -> pb.ReconstructResponse:
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        form = codec.read_format(request.format, model.manifest.default.x)
        if request.draw:
            fields.require(model, "draw", "draw")
        if request.include_scores:
            fields.require(model, "score", "include_scores")
        wants_contributions = outliers.require_contributions(request, model)
        wants_scores = request.include_scores or wants_contributions
        threshold = outliers.threshold(request, model, request.include_scores)
        float_dtype = codec.read_float_dtype(request.float_dtype)
        x, out_of_range = await fields.read_rows(
            request.x, model, "x", contributions=wants_contributions
        )
        threshold = outliers.for_size(threshold, request, model, x)
        seeded = request.draw or request.draw_x
        random = fields.posterior_noise(request, len(x)) if seeded else None
        decoding = fields.sampled(request, model, random) if random else None
        noise = random if request.draw else None
        result = await model.reconstruct(
            x, noise, wants_scores, context, decoding=decoding, contributions=wants_contributions
        )
        if (bad := finite.bad_row(*result)) is not None:
            self._nonfinite.add(model, encoder=result.encoded, decoder=result.decoded)
            row_noise = None if noise is None else noise.slice(bad, bad + 1)
            row = model.reconstruct(x[bad : bad + 1], row_noise, wants_scores, context)
            raise await finite.cause(bad, "x", row)
        rebuilt, contributions = result.x, result.contributions
        assert rebuilt is not None
        if float_dtype:
            rebuilt, contributions = await fields.narrowed(float_dtype, rebuilt, contributions)
        response = pb.ReconstructResponse(
            served_by=model.served_by,
            seed=random.seed if random else 0,
            tiled=fields.tiled(model),
        )
        await fields.write_rows(rebuilt, form, response)
        if result.scores is not None:
            error = result.scores.reconstruction_error
            assert error is not None
            if request.include_scores:
                response.reconstruction_error.extend(error)
                response.kl.extend(result.scores.kl)
                response.elbo.extend(result.scores.elbo)
            outliers.write(threshold, error, contributions, response)
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
        stream = ReconstructStream(model, first, context, self._nonfinite)

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
        served = self._repository.find(request.model, request.version, context)
        model = fields.with_tiling(served, request.tiling)
        if request.path not in pb.InterpolationPath.values():
            raise InvalidArgument("path", f"unknown enum value {request.path}")
        form = codec.read_format(request.format, model.manifest.default.x)
        float_dtype = codec.read_float_dtype(request.float_dtype)
        shapes = await anchors.common_shapes(model, request)
        fields.require_room(shapes, model, "sizes", form, float_dtype)
        max_rows = model.max_rows(shapes)
        if not 2 <= request.steps <= max_rows:
            raise InvalidArgument(
                "steps",
                f"{request.steps} steps requested; the limit is 2 to {max_rows} per request",
                "Start and end count",
            )
        start, start_out_of_range = await anchors.latent(
            model, request.start, "start", shapes, context, self._nonfinite
        )
        end, end_out_of_range = await anchors.latent(
            model, request.end, "end", shapes, context, self._nonfinite
        )
        straight = request.path == pb.INTERPOLATION_PATH_LERP
        path = (latents.lerp if straight else latents.slerp)(start, end, request.steps)
        path_is_finite = finite.bad_row(path) is None
        needs_score_output = path_is_finite and finite.needs_score_output(model, path)
        x, score_output, _ = await model.decode(
            GivenLatents(path), shapes, context, score_output=needs_score_output
        )
        score_output = score_output if needs_score_output else None
        if (bad := finite.bad_row(path, x, score_output)) is not None:
            if path_is_finite:
                self._nonfinite.add(model, decoder=(x, score_output))
            ends = (("start", request.start, start), ("end", request.end, end))
            given = [
                (float(np.abs(z).max()), name)
                for name, anchor, z in ends
                if anchor.WhichOneof("point") != "sample"
            ]
            if not given:
                raise finite.engine_error()
            _, farthest = max(given)
            latent = GivenLatents(path[bad : bad + 1])
            step = model.decode(latent, shapes, context, score_output=needs_score_output)
            raise await finite.cause(bad, farthest, step, "step")
        if float_dtype:
            x, path = await fields.narrowed(float_dtype, x, path if request.include_z else None)
        response = pb.InterpolateResponse(served_by=model.served_by, tiled=fields.tiled(model))
        await fields.write_rows(x, form, response)
        if request.include_z:
            codec.write_tensor(path, response.z)
        if start_out_of_range or end_out_of_range:
            response.values_outside_range.extend((start_out_of_range, end_out_of_range))
        return response

    async def score(self, request: pb.ScoreRequest, context: CallContext) -> pb.ScoreResponse:
        model = self._repository.find(request.model, request.version, context)
        fields.require(model, "score", "model")
        contributions = outliers.require_contributions(request, model)
        threshold = outliers.threshold(request, model)
        x, out_of_range = await fields.read_rows(request.x, model, "x", contributions=contributions)
        threshold = outliers.for_size(threshold, request, model, x)
        draws = request.draws or _DEFAULT_DRAWS
        max_rows = model.max_rows(model.manifest.shapes_of_x(x.shape[1:]))
        max_draws = min(self._settings.max_draws, max_rows * 64 // len(x))
        if draws > max_draws:
            raise InvalidArgument(
                "draws", f"{draws} requested; the limit for {len(x)} rows is {max_draws}"
            )
        noise = fields.posterior_noise(request, len(x))
        scores = await model.score(x, draws, noise, context)
        if (bad := finite.bad_row(*scores)) is not None:
            found = (scores.elbo, scores.log_likelihood)
            self._nonfinite.add(model, encoder=(scores.kl,), decoder=found)
            row = model.score(x[bad : bad + 1], draws, noise.slice(bad, bad + 1), context)
            raise await finite.cause(bad, "x", row)
        response = pb.ScoreResponse(
            served_by=model.served_by,
            elbo=scores.elbo,
            log_likelihood=scores.log_likelihood,
            kl=scores.kl,
            seed=noise.seed,
            draws=draws,
            values_outside_range=out_of_range,
        )
        if threshold is None and not contributions:
            return response
        # The threshold is of scores at the mean, which have neither noise nor binary x.
        is_text = model.manifest.default.x.is_text
        decoding = TeacherForced(x) if is_text else None  # only scores are wanted
        rebuilt = await model.reconstruct(
            x, None, True, context, decoding=decoding, contributions=contributions
        )
        if (bad := finite.bad_row(*rebuilt)) is not None:
            self._nonfinite.add(model, encoder=rebuilt.encoded, decoder=rebuilt.decoded)
            again = model.reconstruct(x[bad : bad + 1], None, True, context)
            raise await finite.cause(bad, "x", again)
        assert rebuilt.scores
        error = rebuilt.scores.reconstruction_error
        assert error is not None
        response.reconstruction_error.extend(error)
        outliers.write(threshold, error, rebuilt.contributions, response)
        return response
