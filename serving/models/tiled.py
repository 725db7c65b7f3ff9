"""A served model for one call whose large rows are run in tiles.

The tiles of a row are rows of one size, which share batches with all other rows of that size.
"""

from __future__ import annotations

from latentd.batching.runner import Outputs
from latentd.bundle import RowShapes, Tile
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future, create_task, run_in_executor
from latentd.codec import Array
from latentd.decoding import Decoding, Sampled, TeacherForced
from latentd.errors import InvalidArgument
from latentd.latents import Latents, NoiseRange
from latentd.models.inference import ReconstructionOutputs, ServedModel
from latentd.models.sources import GivenLatents, PriorSamples, Source
from latentd.shapes import Shape
from latentd.tiles import TiledRows, TilePlan


class TiledModel(ServedModel):
    """The same model, which shares everything with the one that it is made from.

    always: run each row in tiles that is larger than one tile; else only a row that does not fit
            into memory
    used:   the tiles of each graph that has run so
    """

    def __init__(self, model: ServedModel, always: bool) -> None:
        vars(self).update(vars(model))
        self._always = always
        self.used: dict[str, Tile] = {}

    def too_large(self, shapes: RowShapes) -> tuple[str, str] | None:
        """As of ServedModel. Only one tile needs to fit, but the whole row into a message."""
        for graph in ("encoder", "decoder"):
            plan = self._plan(graph, shapes)
            if reason := super().too_large(self.manifest.at(plan.size) if plan else shapes):
                return reason
            if plan and (reason := self.beyond_message(shapes.x.nbytes)):
                return reason
        return None

    def encode(self, x: Array | TiledRows, caller: CallContext, work: int = 0) -> Future[Outputs]:
        """As of ServedModel."""
        shapes = self.manifest.shapes_of_x(x.shape[1:])
        plan = self._plan("encoder", shapes)
        if plan is None or isinstance(x, TiledRows):
            return super().encode(x, caller, work)
        return create_task(self._encode(plan, x, caller, work))

    async def _encode(self, plan: TilePlan, x: Array, caller: CallContext, work: int) -> Outputs:
        self.used["encoder"] = self.manifest.tiles["encoder"]
        tiles = plan.split(x, self.manifest.x.shape)
        encoded = await super().encode(tiles, caller, work * plan.count)
        return await run_in_executor(_assemble, plan, encoded, [self.manifest.z.shape] * 2)

    def decode(
        self,
        source: Source,
        shapes: RowShapes,
        caller: CallContext,
        *,
        score_output: bool = False,
        work: int = 0,
        decoding: Decoding | None = None,
    ) -> Future[Outputs]:
        """As of ServedModel."""
        plan = self._plan("decoder", shapes)
        if plan is None:
            return super().decode(
                source, shapes, caller, score_output=score_output, work=work, decoding=decoding
            )
        return create_task(self._decode(plan, source, shapes, caller, score_output, work))

    async def _decode(
        self,
        plan: TilePlan,
        source: Source,
        shapes: RowShapes,
        caller: CallContext,
        score_output: bool,
        work: int,
    ) -> Outputs:
        self.used["decoder"] = self.manifest.tiles["decoder"]
        # Latents are drawn for whole rows, so they are the same as without tiles.
        z = await run_in_executor(_latents, source, shapes.z)
        tiles = GivenLatents(plan.split(z, self.manifest.z.shape))
        tile_shapes = self.manifest.at(plan.size)
        x, values, _ = await super().decode(
            tiles, tile_shapes, caller, score_output=score_output, work=work * plan.count
        )
        x_shape = self.manifest.x.shape
        of_params = Shape.parse([len(self.manifest.parameters), *x_shape.json])
        # Others in the batches may have asked for the score output.
        outputs = (x, values if score_output else None)
        return (*await run_in_executor(_assemble, plan, outputs, [x_shape, of_params]), z)

    async def reconstruct(
        self,
        x: Array,
        draw: NoiseRange | None,
        scores: bool,
        caller: CallContext,
        work: int = 0,
        decoding: Sampled | TeacherForced | None = None,
        contributions: bool = False,
    ) -> ReconstructionOutputs:
        """As of ServedModel. Raises InvalidArgument for the scores of rows that fit into memory in
        tiles only: the likelihood is computed of whole rows."""
        shapes = self.manifest.shapes_of_x(x.shape[1:])
        if scores and (reason := super().too_large(shapes)):
            field = "include_contributions" if contributions else "include_scores"
            raise InvalidArgument(
                field,
                f"scores are computed of whole rows, and {reason[0]}",
                f"Leave {field} out, or send smaller rows",
            )
        return await super().reconstruct(x, draw, scores, caller, work, decoding, contributions)

    def _plan(self, graph: str, shapes: RowShapes) -> TilePlan | None:
        """The parts in which a graph runs rows of this size; None: it runs them whole."""
        limit = self.max_elements
        if not self._always and (not limit or shapes.x.size <= limit):
            return None
        axes = self.manifest.axes
        sizes = dict(zip(axes, shapes.key, strict=True))
        plan = TilePlan.of(self.manifest.tiles[graph], axes, sizes)
        return plan if plan.count > 1 else None


def _latents(source: Source, shape: tuple[int, ...]) -> Latents:
    if isinstance(source, GivenLatents):
        return source.z[:]
    return source.latents(shape) if isinstance(source, PriorSamples) else source.latents()


def _assemble(plan: TilePlan, outputs: Outputs, shapes: list[Shape]) -> Outputs:
    return tuple(
        None if array is None else plan.assemble(array, shape)
        for array, shape in zip(outputs, shapes, strict=True)
    )
