"""Which rows are outliers and why, for people: a line, and the largest contributions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from latentd.client.results import ModelInfo, Reconstruction, Scores
from latentd.codec import Array
from latentd.console import groups
from latentd.console.groups import Group
from latentd.console.outputs import OutputPath
from latentd.errors import InvalidArgument
from latentd.outliers import excess, largest_contributions

_SHOWN: Final = 3  # contributions of a row that are printed
_MAX_ROWS: Final = 32  # whose contributions are printed

Parts = Sequence[Reconstruction] | Sequence[Scores]
"""The responses for all rows, in order."""


def check_flags(
    args: argparse.Namespace, info: ModelInfo, out: OutputPath | None, found: Sequence[Group]
) -> None:
    """Raise InvalidArgument if what the flags ask for cannot be told or written."""
    if args.outliers_only:
        if not getattr(args, "scores", True):
            raise InvalidArgument("--outliers-only", "needs scores", "Add --scores")
        if args.threshold is None and info.threshold is None:
            what = "neither the bundle nor the command has a threshold"
            raise InvalidArgument("--outliers-only", what, "Add --threshold NATS")
    if not args.contributions:
        return
    if out is not None and out.kind == "npz":
        groups.check_one_size(found)
    elif out is not None and out.kind != "png":
        raise InvalidArgument(
            "--contributions", f"a .{out.kind} cannot hold them", "Use an .npz path"
        )


def columns(found: Sequence[Group], parts: Parts) -> dict[str, Array]:
    """Columns of the table that is printed: whether each row is an outlier. Without a threshold for
    its size a row is none; `print_outliers` counts such rows."""
    if all(part.is_outlier is None for part in parts):
        return {}
    flags = [np.zeros(_rows(part), bool) if (f := part.is_outlier) is None else f for part in parts]
    return {"is_outlier": groups.in_order(found, np.concatenate(flags))}


def errors(found: Sequence[Group], parts: Sequence[Scores]) -> dict[str, Array]:
    """The column of reconstruction errors: NaN where Score did not compute one."""
    if all(part.reconstruction_error is None for part in parts):
        return {}
    known = [
        np.full(_rows(part), np.nan, np.float32) if (e := part.reconstruction_error) is None else e
        for part in parts
    ]
    return {"reconstruction_error": groups.in_order(found, np.concatenate(known))}


def _rows(part: Reconstruction | Scores) -> int:
    assert part.elbo is not None, "scores were not requested"
    return len(part.elbo)


def contributions(parts: Parts) -> list[Array]:
    """Those of each response, if they were requested."""
    return [part.contributions for part in parts if part.contributions is not None]


def arrays(info: ModelInfo, parts: Parts) -> dict[str, Any]:
    """What an .npz holds beside the scores. All rows have one size."""
    terms = contributions(parts)
    rows = np.concatenate(terms) if terms else None
    return {
        "threshold": parts[0].threshold,
        "contributions": rows,
        "excess": None if rows is None else excess(rows, info.training_scores),
    }


def print_outliers(info: ModelInfo, found: Sequence[Group], parts: Parts) -> None:
    """Print one line about the outliers, if there is a threshold; and of rows that are no images
    the largest contributions, if they were requested: of outliers, or without any of all rows."""
    known = columns(found, parts).get("is_outlier")
    if known is not None:
        threshold = next(part.threshold for part in parts if part.threshold is not None)
        chosen = info.threshold
        of_bundle = chosen is not None and chosen.reconstruction_error == threshold
        percent = f", which {chosen.percentile:g} % of the training rows do not" if chosen else ""
        print(
            f"{int(known.sum())} of {len(known)} rows are outliers: their reconstruction_error "
            f"exceeds {threshold:.6g} nats{percent if of_bundle else ''}."
        )
        if other := sum(_rows(part) for part in parts if part.threshold is None):
            print(f"{other} rows of other sizes have no threshold; --threshold gives one.")
    if parts[0].contributions is None or info.default.x.kind == "image":
        return
    rows = groups.in_order(found, np.concatenate(contributions(parts)))
    picked = np.arange(len(rows)) if known is None or not known.any() else np.flatnonzero(known)
    order = np.argsort(-rows.reshape(len(rows), -1).sum(axis=1)[picked], kind="stable")
    ranked = excess(rows, info.training_scores)
    if ranked is None:
        print("Largest contributions to the reconstruction error, in nats, largest errors first:")
    else:
        print(
            "Columns that add most to the reconstruction error beyond their median among the "
            "training rows, in nats, largest errors first:"
        )
    for row in picked[order][:_MAX_ROWS].tolist():
        terms = rows[row] if ranked is None else ranked[row]
        largest = largest_contributions(terms, info.x.columns, _SHOWN)
        print(f"{row:6}  {', '.join(f'{name} {nats:.2f}' for _, name, nats in largest)}")
    if len(picked) > _MAX_ROWS:
        print(f"... and of {len(picked) - _MAX_ROWS} other rows; --out FILE.npz writes all.")
