"""The two ends of an interpolation: their size and their latents."""

from __future__ import annotations

from latentd import latents
from latentd.bundle import RowShapes
from latentd.calls.context import CallContext
from latentd.errors import InvalidArgument
from latentd.latents import Latents
from latentd.models.inference import ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.rpc import fields, finite
from latentd.rpc.methods import INFER


async def common_shapes(model: ServedModel, request: pb.InterpolateRequest) -> RowShapes:
    """The rows at the size of both ends. Raises InvalidArgument."""
    named = fields.shapes_at(request.sizes, model)
    found = {"sizes": named} if request.sizes else {}
    for field, anchor in (("start", request.start), ("end", request.end)):
        kind = anchor.WhichOneof("point")
        if kind == "x":
            found[field] = await fields.shapes_of_rows(anchor.x, model, f"{field}.x")
        elif kind == "z":
            found[field] = fields.shapes_of_latents(anchor.z, model, f"{field}.z")
        elif kind == "sample":
            fields.require(model, "sample", f"{field}.sample")
    first = next(iter(found), "")
    for field, shapes in found.items():
        if shapes.key != found[first].key:
            raise InvalidArgument(
                field,
                f"has size {list(shapes.x.shape)}, but {first} has {list(found[first].x.shape)}",
                "Send two ends of one size",
            )
    return found.get(first, named)


async def latent(
    model: ServedModel,
    anchor: pb.LatentAnchor,
    field: str,
    shapes: RowShapes,
    context: CallContext,
    nonfinite: finite.NonfiniteRows,
) -> tuple[Latents, int]:
    """The latent of one end of an interpolation: float32 of z's shape, without an axis for rows. If
    it is given as data, also how many of its values lie outside the model's range, else 0.

    Raises InvalidArgument, PermissionDenied, and what the batcher raises.
    """
    kind, out_of_range = anchor.WhichOneof("point"), 0
    if kind == "x":
        # The response reveals the encoding: exactly with include_z, else in what is decoded.
        fields.require_scope(context, INFER, f"{field}.x", "an anchor given as data")
        x, counts = await fields.read_rows(anchor.x, model, f"{field}.x", max_rows=1)
        out_of_range = 0 if counts is None else int(counts[0])
        z, _ = await model.encode(x, context)
        if finite.bad_row(z) is not None:
            nonfinite.add(model, encoder=(z,))
            raise await finite.cause(0, f"{field}.x", model.encode(x, context))
    elif kind == "z":
        z, _ = await fields.read_latents(anchor.z, model, f"{field}.z", max_rows=1)
    elif kind == "sample":
        sample = anchor.sample
        noise = fields.noise_range(sample.seed, sample.index, 1, f"{field}.sample.index")
        z = latents.standard_normal([noise], shapes.z)
    else:
        raise InvalidArgument(field, "missing", "Send one row x, one latent z, or a sample's seed")
    point: Latents = z[0]
    return point, out_of_range
