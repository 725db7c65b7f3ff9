"""The contact sheet: rows beside what the model makes of them, the worst scored first.

For people to look at: is what scores badly odd, or is the model? Below the worst come rows picked
evenly from the whole job, in the same order.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from serving import images
from serving.bundle import XSpec
from serving.jobs.inputs import Rows
from serving.jobs.plan import Plan
from serving.jobs.reconstruct import Reconstruct
from serving.jobs.store import ShardManifest
from serving.readers.rows import Array, Chunk

WORST: Final = 32
EVENLY: Final = 32
_COLUMNS: Final = 8  # pairs side by side in the PNG

_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em;background:#fff;color:#222}"
    "div{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:14em}"
    "img{width:6.5em;image-rendering:pixelated;border:1px solid #ccc;margin-right:.3em}"
    "figcaption{font-size:12px;overflow-wrap:anywhere}"
)


@dataclass(frozen=True, slots=True)
class _Pair:
    row: int
    id: str
    error: float | None  # nats
    x: images.Pixels
    made: images.Pixels


def fits(x: XSpec) -> bool:
    """Whether rows of this kind can be looked at."""
    return x.kind == "image" and x.shape[2:] in ((), (1,), (3,))


def draw(
    plan: Plan, manifests: Sequence[ShardManifest], rows: Rows, reconstruct: Reconstruct
) -> dict[str, bytes]:
    """sheet.html and sheet.png. `reconstruct` gives x and, where the job scores, scores."""
    worst = sorted((pair for m in manifests for pair in m.worst), key=lambda p: (-p[1], p[0]))
    top = [row for row, _ in worst[:WORST]]
    even = {i * plan.rows // EVENLY for i in range(EVENLY)} - set(top)
    pairs = {pair.row: pair for pair in _pairs(plan, sorted({*top, *even}), rows, reconstruct)}
    first = [pairs[row] for row in top if row in pairs]
    others = [pairs[row] for row in sorted(even) if row in pairs]
    others.sort(key=lambda pair: -(pair.error or 0.0))
    both = [image for pair in first + others for image in (pair.x, pair.made)]
    if not both:
        return {}
    return {
        "sheet.png": images.grid(np.stack(both), 2 * _COLUMNS, least_side=1024),
        "sheet.html": _html(plan, first, others),
    }


def _pairs(
    plan: Plan, wanted: Sequence[int], rows: Rows, reconstruct: Reconstruct
) -> Iterator[_Pair]:
    seen: list[Array] = []

    def chunks() -> Iterator[Chunk]:
        for row in wanted:
            for chunk in rows.read(row, row + 1, 1):
                seen.append(chunk.x)
                yield chunk

    for index, results in enumerate(reconstruct(chunks())):
        if not len(results.rows) or results.x is None:
            continue  # quarantined
        errors = results.reconstruction_error
        yield _Pair(
            int(results.rows[0]),
            results.ids[0],
            None if errors is None else float(errors[0]),
            _pixels(seen[index], plan.x)[0],
            _pixels(results.x, plan.x)[0],
        )


def _pixels(x: Array, spec: XSpec) -> images.Pixels:
    if spec.dtype == "uint8":
        return x
    low, high = spec.range
    scaled: images.Pixels = np.rint((x - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return scaled


def _html(plan: Plan, first: Sequence[_Pair], others: Sequence[_Pair]) -> bytes:
    title = f"{plan.bundle.model} version {plan.bundle.version}: {plan.rows:,} rows"
    parts = [
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        "<p>Left the row, right its reconstruction; below, its name and its reconstruction error "
        "in nats.</p>",
    ]
    for heading, pairs in (("Worst scored", first), ("Picked evenly", others)):
        if pairs:
            figures = "".join(map(_figure, pairs))
            parts.append(f"<h2>{heading}</h2><div>{figures}</div>")
    return "\n".join([*parts, ""]).encode()


def _figure(pair: _Pair) -> str:
    tags = "".join(
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for png in images.write_pngs(np.stack([pair.x, pair.made]))
    )
    score = "" if pair.error is None else f": {pair.error:,.1f}"
    return f"<figure>{tags}<figcaption>{html.escape(pair.id)}{score}</figcaption></figure>"
