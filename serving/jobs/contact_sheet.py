"""The contact sheet: rows and their reconstructions, the largest errors per value first.

It helps people judge whether the rows with bad scores are odd, or the model is. After the worst
rows come rows picked evenly from the whole job, also with the largest errors first. Images are
shown as images, texts as text, other rows as line plots with the numbers that differ most, or with
contributions those that add most to the error. Columns are plotted in units of their standard
deviation, and named. Outliers are marked. Equal rows are shown once. The HTML file needs no other
file.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentd import images, outliers, tables, texts
from latentd.bundle import DataSpec
from latentd.codec import Array
from latentd.jobs import outputs
from latentd.jobs.inputs import RowReader
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import Reconstruct
from latentd.jobs.store import ShardManifest
from latentd.pixels import Pixels

WORST: Final = 32
EVENLY: Final = 32
_COLUMNS: Final = 8  # pairs side by side in the PNG
_SPARE: Final = 8  # extra rows, because some of the worst may be equal
_SIDE: Final = 256  # of the images shown
_POINTS: Final = 200  # of a line plot
_SHOWN: Final = 3  # numbers that are printed below a plot
_OTHER_LEVEL: Final = 3.0  # standard deviations at which another level is plotted

Scale = tuple[float, float]
"""Nats at both ends of the heat maps' colors."""

_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em;background:#fff;color:#222}"
    "div{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:14em}"
    "img{width:6.5em;image-rendering:pixelated;border:1px solid #ccc;margin-right:.3em}"
    "svg{width:14em;height:6em;border:1px solid #ccc}polyline{fill:none;stroke-width:1.5;"
    "vector-effect:non-scaling-stroke}.row{stroke:#222}.reconstruction{stroke:#e60}rect{fill:#eee}"
    "p.row,p.reconstruction{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}"
    "p.reconstruction{color:#a30}figcaption{font-size:12px;overflow-wrap:anywhere}"
    ".outlier{outline:2px solid #c00;outline-offset:.2em}b{color:#c00}"
)


@dataclass(slots=True)
class _Pair:
    """A row and its reconstruction, both of the model's shape and dtype."""

    row: int
    id: str
    error: float | None  # nats
    x: Array
    reconstruction: Array
    contributions: Array | None = None  # nats
    is_outlier: bool = False
    equal: int = 0  # other rows with the same score

    @property
    def error_per_value(self) -> float:
        """By it rows of several sizes compare."""
        return (self.error or 0.0) / self.x.size


def render(
    plan: Plan, manifests: Sequence[ShardManifest], rows: RowReader, reconstruct: Reconstruct
) -> dict[str, bytes]:
    """sheet.html and, if rows are images, sheet.png, by name. `reconstruct` must return x, and the
    scores if the job has them."""
    top = _worst(manifests)
    even = {i * plan.rows // EVENLY for i in range(EVENLY)}
    pairs = {pair.row: pair for pair in _pairs(plan, sorted({*top, *even}), rows, reconstruct)}
    for row, equal in top.items():
        if row in pairs:
            pairs[row].equal = equal
    worst = _distinct([pairs[row] for row in top if row in pairs])[:WORST]
    shown = {pair.x.tobytes() for pair in worst}
    picked = {pairs[row].x.tobytes(): pairs[row] for row in sorted(even - set(top)) if row in pairs}
    others = [pair for x, pair in picked.items() if x not in shown]
    others.sort(key=lambda pair: -pair.error_per_value)
    if not worst + others:
        return {}
    scale = _scale(plan, worst + others)
    told = _outliers_line(plan, manifests, worst + others)
    sheets = {"sheet.html": _html(plan, worst, others, scale, told)}
    if _is_image(plan.x):
        shown_pairs = [_pictures(pair, plan.x, scale) for pair in worst + others]
        pictures = [picture for of_pair in shown_pairs for picture in of_pair]
        sheets["sheet.png"] = images.make_grid(_framed(pictures), len(shown_pairs[0]) * _COLUMNS)
    return sheets


def _worst(manifests: Sequence[ShardManifest]) -> dict[int, int]:
    """A row for each of the largest errors, the largest first -> how many other rows have it."""
    found: dict[float, tuple[int, int]] = {}
    for row, error, count in sorted(worst for m in manifests for worst in m.worst):
        first, others = found.get(error, (row, -1))
        found[error] = first, others + count
    ranked = sorted(found.items(), key=lambda item: -item[0])
    return dict(rows for _, rows in ranked[: WORST + _SPARE])


def _distinct(pairs: Sequence[_Pair]) -> list[_Pair]:
    """One pair for each distinct row; it counts the others. Equal rows can have errors that differ
    in the last bits."""
    seen: dict[bytes, _Pair] = {}
    for pair in pairs:
        first = seen.setdefault(pair.x.tobytes(), pair)
        if first is not pair:
            first.equal += 1 + pair.equal
    return list(seen.values())


def _pairs(
    plan: Plan, wanted: Sequence[int], rows: RowReader, reconstruct: Reconstruct
) -> Iterator[_Pair]:
    for chunk in (chunk for row in wanted for chunk in rows.read(row, row + 1)):
        (results,) = reconstruct(iter([chunk]))  # alone: a server numbers the rows of a call
        if not len(results.rows) or results.x is None:
            continue  # quarantined
        errors = results.reconstruction_error
        error = None if errors is None else float(errors[0])
        terms = None if results.contributions is None else results.contributions[0]
        outlier = outputs.count_outliers(results, plan) > 0
        row, name = int(results.rows[0]), results.ids[0]
        yield _Pair(row, name, error, chunk.x[0], results.x[0], terms, outlier)


def _outliers_line(plan: Plan, manifests: Sequence[ShardManifest], pairs: Sequence[_Pair]) -> str:
    """What the sheet says of outliers; "": there is no threshold."""
    threshold = plan.threshold if plan.wanted.threshold is None else plan.wanted.threshold
    if threshold is None:
        return ""
    shown = sum(pair.is_outlier for pair in pairs)
    return (
        f"{sum(m.outliers for m in manifests):,} of {plan.rows:,} rows are outliers: their "
        f"reconstruction error exceeds {threshold:.6g} nats. {shown:,} of them are shown, in red "
        "frames."
    )


def _is_image(x: DataSpec) -> bool:
    return x.kind == "image" and x.shape[2:] in ((), (1,), (3,))


def _pixels(x: Array, spec: DataSpec) -> Pixels:
    """The row as an image of at most _SIDE x _SIDE pixels."""
    if spec.dtype == "uint8":
        return images.shrunk(x, _SIDE)
    low, high = _range(spec, x)
    scaled: Pixels = np.rint((x - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return images.shrunk(scaled, _SIDE)


def _scale(plan: Plan, pairs: Sequence[_Pair]) -> Scale | None:
    """The ends of the heat maps' scale; None: there are none."""
    terms = [pair.contributions[None] for pair in pairs if pair.contributions is not None]
    return images.heat_scale(terms) if terms and _is_image(plan.x) else None


def _pictures(pair: _Pair, spec: DataSpec, scale: Scale | None) -> list[Pixels]:
    """The row, its reconstruction, and with a scale the heat map of its contributions."""
    both = [_pixels(x, spec) for x in (pair.x, pair.reconstruction)]
    if scale is None or pair.contributions is None:
        return both
    (heat,) = images.heat_maps([pair.contributions[None]], scale)
    rgb = [images.to_rgb(picture[None])[0] for picture in both]
    return [*rgb, images.shrunk(heat[0], _SIDE)]


def _range(spec: DataSpec, *rows: Array) -> tuple[float, float]:
    """The model's range; if it is unknown, that of the values in these rows."""
    if math.isfinite(spec.range[0]):
        return spec.range
    low, high = min(float(row.min()) for row in rows), max(float(row.max()) for row in rows)
    return low, high if high > low else low + 1.0


def _framed(pictures: Sequence[Pixels]) -> Pixels:
    """All pictures in one array, each at the top left of a white frame of the largest size."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    framed = np.full((len(pictures), height, width, *pictures[0].shape[2:]), 255, np.uint8)
    for frame, picture in zip(framed, pictures, strict=True):
        frame[: picture.shape[0], : picture.shape[1]] = picture
    return framed


def _html(
    plan: Plan,
    worst: Sequence[_Pair],
    others: Sequence[_Pair],
    scale: Scale | None,
    told: str,
) -> bytes:
    title = f"{plan.bundle.model} version {plan.bundle.version}: {plan.rows:,} rows"
    legend = "Left: the row. Right: its reconstruction"
    if scale:
        low, high = scale
        legend = (
            "The row, its reconstruction, and what each pixel adds to the error: from black, "
            f"{low:.3g} nats, to yellow, {high:.3g}"
        )
    if plan.x.is_text:
        legend = "Black: the text. Red: its reconstruction"
    elif plan.x.columns:
        legend = (
            "Black: the row, each number less its column's mean, in standard deviations of the "
            "training rows. Orange: its reconstruction; in a categorical column the lines part "
            "where it is another level. Grey: two standard deviations. The last lines below are "
            f"the columns {_listed(plan)}"
        )
    elif not _is_image(plan.x):
        legend = (
            "Black: the row. Orange: its reconstruction. Grey: the model's range. The last lines "
            f"below are the numbers {_listed(plan)}"
        )
    parts = [
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>{legend}. The first line below is the row's name and its reconstruction error in "
        "nats. Of rows with the same score only one is shown.</p>",
        *([f"<p>{told}</p>"] if told else []),
    ]
    largest = "Largest errors" if plan.shapes else "Largest errors per value"
    for heading, pairs in ((largest, worst), ("Picked evenly", others)):
        if pairs:
            figures = "".join(_figure(pair, plan, scale) for pair in pairs)
            parts.append(f"<h2>{heading}</h2><div>{figures}</div>")
    return "\n".join([*parts, ""]).encode()


def _figure(pair: _Pair, plan: Plan, scale: Scale | None) -> str:
    spec = plan.x
    if _is_image(spec):
        shown = "".join(
            f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for png in images.encode_files(_pictures(pair, spec, scale))
        )
        numbers = ""
    elif spec.is_text:
        shown, numbers = _lines(pair), ""
    else:
        shown, numbers = _plot(pair, spec), _numbers(pair, plan)
    score = "" if pair.error is None else f": {pair.error:,.1f}"
    if pair.error is not None and plan.shapes is None:
        score += f", {pair.error_per_value:,.3g} per value"
    equal = f" (and {pair.equal:,} with the same score)" if pair.equal else ""
    name, kind = html.escape(pair.id), ""
    if pair.is_outlier:
        name, kind = f"<b>{name}, outlier</b>", ' class="outlier"'
    caption = f"{name}{score}{equal}{numbers}"
    return f"<figure{kind}>{shown}<figcaption>{caption}</figcaption></figure>"


def _lines(pair: _Pair) -> str:
    """The text, and below it its reconstruction."""
    both = texts.to_texts([pair.x, pair.reconstruction])
    return "".join(
        f'<p class="{name}">{html.escape(texts.printable(text))}</p>'
        for name, text in zip(("row", "reconstruction"), both, strict=True)
    )


def _plot(pair: _Pair, spec: DataSpec) -> str:
    """Both as lines. A long row is cut into _POINTS parts; the line has the element of each
    part that differs most."""
    x, reconstruction = _comparable(pair, spec)
    parts = np.array_split(np.abs(x - reconstruction), min(_POINTS, len(x)))
    starts = np.cumsum([0, *map(len, parts[:-1])])
    at = starts + [int(part.argmax()) for part in parts]
    two_std = (-2.0, 2.0)
    low, high = two_std if spec.columns else _range(spec, pair.x, pair.reconstruction)
    bottom, top = (float(f((*x[at], *reconstruction[at], low, high))) for f in (np.min, np.max))
    height = (top - bottom) or 1.0

    def y(value: float) -> float:
        return 100 * (top - value) / height

    across = 200 / max(len(at) - 1, 1)
    lines = "".join(
        f'<polyline class="{name}" points="'
        + " ".join(f"{i * across:.1f},{y(value):.1f}" for i, value in enumerate(values[at]))
        + '"/>'
        for name, values in (("row", x), ("reconstruction", reconstruction))
    )
    band = f'<rect x="0" width="200" y="{y(high):.1f}" height="{100 * (high - low) / height:.1f}"/>'
    return f'<svg viewBox="0 0 200 100" preserveAspectRatio="none">{band}{lines}</svg>'


def _comparable(pair: _Pair, spec: DataSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both rows, flat, in numbers of one unit."""
    x, reconstruction = (a.reshape(-1).astype(np.float64) for a in (pair.x, pair.reconstruction))
    if not spec.columns:
        return x, reconstruction
    other = (x != reconstruction) * _OTHER_LEVEL
    x, reconstruction = (tables.standardized(spec.columns, a[None])[0] for a in (x, reconstruction))
    categorical = np.array([column.is_categorical for column in spec.columns])
    return np.where(categorical, 0, x), np.where(categorical, other, reconstruction)


def _listed(plan: Plan) -> str:
    """Which numbers are listed below a plot, in words."""
    if not plan.wanted.contributions:
        return "that differ most"
    most = "that add most to the error, with their nats"
    if outliers.MEDIANS in plan.training_scores:
        most += ": beyond their median among the training rows"
    return most


def _numbers(pair: _Pair, plan: Plan) -> str:
    """The elements that `_listed` tells: index or name, value in the row and in its reconstruction,
    and nats if contributions are known."""
    if pair.contributions is None:
        x, again = _comparable(pair, plan.x)
        ranked = np.abs(x - again).reshape(pair.x.shape)
    else:
        excess = outliers.excess(pair.contributions, plan.training_scores)
        ranked = pair.contributions if excess is None else excess
    lines = []
    for at, name, value in outliers.largest_contributions(ranked, plan.x.columns, _SHOWN):
        line = name
        if ranked.shape == pair.x.shape:  # else several elements contribute together
            x_at, again_at = (_value(row, plan.x, at) for row in (pair.x, pair.reconstruction))
            line += f" {x_at}, reconstruction {again_at}"
        lines.append(line + (f": {value:+,.1f}" if pair.contributions is not None else ""))
    return "".join(f"<br>{html.escape(line)}" for line in lines)


def _value(row: Array, spec: DataSpec, at: int) -> str:
    """An element of a row for people: a number or a level."""
    if not spec.columns:
        return f"{row.reshape(-1)[at]:.4g}"
    column = spec.columns[at]
    (value,) = tables.to_values([column], row[None, at : at + 1])[column.name]
    return value if isinstance(value, str) else f"{value:.5g}"
