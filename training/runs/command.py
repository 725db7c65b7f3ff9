"""`latentd runs` and `latentd compare-runs`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from latentd.training.errors import TrainingError
from latentd.training.runs import difference, listing, recorded_run

_RUNS: Final = """\
List every run below a folder with its figures: a table for each kind of data, because ELBO and NLL
are compared only where data and pixels are the same. All are in nats per example.
  state            finished; running, in a process on this machine; stopped, to be resumed; broken
  validation ELBO  the best one, and the epoch it is at: what best.pt holds. Higher is better
  test ELBO        of best.pt on the test rows
  NLL              from `latentd evaluate`, with its number of draws S. Lower is better
Logs that cannot be read are named below the table.
"""
_RUNS_EXAMPLES: Final = """\
examples:
  latentd runs runs
  latentd runs runs --sort newest
  latentd runs runs --json | jq '.[] | select(.state == "finished") | .test_elbo'
"""
_COMPARE: Final = """\
Say what differs between runs that were trained before: settings, data and split, environment, and
figures with their differences from the first run. It trains nothing: `latentd compare` is the one
that trains, a VAE and an autoencoder, to measure what VAEs are for.
"""
_COMPARE_EXAMPLES: Final = """\
examples:
  latentd compare-runs runs/a runs/b
  latentd compare-runs runs/a runs/b runs/c --out curves.png
"""


def add(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "runs",
        help="the runs below a folder, with their figures",
        description=_RUNS,
        epilog=_RUNS_EXAMPLES,
        formatter_class=raw,
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder above the runs")
    command.add_argument(
        "--sort",
        choices=tuple(listing.SORTS),
        default="elbo",
        help="the order: best validation ELBO, test ELBO or NLL first; by name; the newest first; "
        "the fewest parameters or seconds first [elbo]",
    )
    command.add_argument("--json", action="store_true", help="print JSON, with all settings")
    command.set_defaults(run=_runs, after=_after)

    command = commands.add_parser(
        "compare-runs",
        help="what differs between runs that were trained before",
        description=_COMPARE,
        epilog=_COMPARE_EXAMPLES,
        formatter_class=raw,
    )
    command.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN", help="runs' folders, two or more"
    )
    command.add_argument("--out", type=Path, help="draw their curves into this .png")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_compare, after=_after)


def _after(arguments: argparse.Namespace) -> str:
    return "Nothing was written."


def _runs(arguments: argparse.Namespace) -> None:
    runs = listing.collect(arguments.folder, arguments.sort)
    if arguments.json:
        print(json.dumps([listing.record(run) for run in runs], indent=2))
    else:
        print(listing.table(runs))


def _compare(arguments: argparse.Namespace) -> None:
    folders, out = arguments.folders, arguments.out
    if not 2 <= len(folders) <= difference.MOST:
        raise TrainingError(f"Name 2 to {difference.MOST} runs' folders, not {len(folders)}.")
    if out and out.suffix != ".png":
        raise TrainingError(f"--out {out} must end in .png.")
    runs = [recorded_run.read(folder) for folder in folders]
    for run in runs:
        for fault in run.faults:
            print(f"{run.folder}: {fault}", file=sys.stderr)
        if not run.log.header:
            raise TrainingError(f"{run.folder} holds no run that can be read.")
    print(
        json.dumps(difference.record(runs), indent=2) if arguments.json else difference.text(runs)
    )
    if out:
        from latentd.training.runs import curves  # matplotlib takes a second to import

        curves.draw(out, runs)
