"""Shared by all measurements on a GPU: the nets' bundles, rounds in turns, one table."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_nets import Net, publish

from latentd import bundle
from latentd.models import loading
from latentd.runtime.engine import Graph, SessionFactory
from latentd.runtime.provider import Provider


@dataclass
class Row:
    """One line of the table."""

    work: str
    ratio: float
    reach: float | None  # at least
    detail: str

    @property
    def verdict(self) -> str:
        return "" if self.reach is None else ("met" if self.ratio >= self.reach else "**missed**")


class Bench:
    """The nets' bundles, rounds in turns and the table."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.device, self.seconds, self.rounds = args.device, args.seconds, args.rounds
        self.precision, self.workers, self.root = args.precision, args.workers, root
        self.table: list[Row] = []

    def report_row(self, work: str, ratio: float, reach: float | None, detail: str) -> None:
        row = Row(work, ratio, reach, detail)
        self.table.append(row)
        bound = "" if reach is None else f">= {reach:g}"
        print(f"{work:58} {ratio:6.2f} {bound:8} {row.verdict:10} {detail}", flush=True)

    def graph(self, net: Net, cuda_graphs: bool) -> Graph:
        loaded = bundle.load(self.path(net))
        _, takes_z = loading.signatures(loaded.manifest)
        engine = SessionFactory(Provider(self.device), cuda_graphs)
        return engine.load(loaded.files[bundle.DECODER], takes_z, threads=1)

    def path(self, net: Net) -> Path:
        folder = self.root / net.name
        made = folder / net.name / "1"
        return made if made.exists() else publish(net, folder, self.precision)

    def rates(self, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Calls a second of each way, round by round, in turns; each is warmed first."""
        for run in ways.values():
            for _ in range(5):
                run()
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, run in ways.items():
                began, calls = time.perf_counter(), 0
                while time.perf_counter() - began < self.seconds:
                    run()
                    calls += 1
                found[name].append(calls / (time.perf_counter() - began))
        return found


def ratio(measured: list[float], reference: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(measured, reference, strict=True))


def report(table: list[Row], head: str) -> str:
    lines = [
        "# On a GPU",
        "",
        "Written by `make bench-gpu`; ratios within one run, medians over its rounds.",
        "",
        head,
        "",
        "| work | measured | to reach | | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.work} | {row.ratio:.2f} | "
            f"{'' if row.reach is None else f'{row.reach:g}'} | {row.verdict} | {row.detail} |"
            for row in table
        ),
    ]
    return "\n".join(lines) + "\n"
