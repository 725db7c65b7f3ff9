"""`latentd tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from latentd.training.config import Config
from latentd.training.config_flags import add_flags, given_settings
from latentd.training.errors import TrainingError
from latentd.training.evaluation.command import positive_int

_DESCRIPTION: Final = """\
Search for good settings on your data: train with several, drop what falls behind, keep the best.
Searched unless their flags fix them: --latent-size, --hidden-size, --learning-rate, --beta.
Trials are compared by their highest validation ELBO, in which the KL has weight 1, whatever --beta
is. A trial whose posterior has collapsed is not chosen. A trial that diverges is recorded.
Written into --out:
  study.db       the study, of Optuna (TPE, median pruning): the same command goes on with it
  trials/0007/   the runs, each as `train` leaves it; only the best one keeps best.pt and last.pt
  trials.csv     every trial: settings, ELBO, KL, active units, seconds
  tuning.png     the ELBO of each trial, and against each setting
At the end the best trial's `latentd train` command is printed.
"""
_EXAMPLES: Final = """\
examples:
  latentd tune --data digits --epochs 60 --budget 2 --out runs/tuned
  latentd tune --data images:photos --image-size 64x64 --epochs 20 --patience 5 --budget 120 \\
      --search latent-size=32:256:log --search batch-size=64,128,256 --beta 1 --out runs/tuned
  latentd export --checkpoint runs/tuned/trials/0007/best.pt --bundles models --name photos

For several trials at a time, start the same command several times on one machine, and share its
CPUs among them with --threads. Ctrl-C and SIGTERM save the running trial and print what was found.
Every other flag is one of `train`'s and fixes that setting: see `train --help`.
"""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    command = commands.add_parser(
        "tune",
        help="data -> the best settings for it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--out", type=Path, required=True, help="folder of the search")
    command.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="stop after this many minutes of training in this command; the trial that runs then "
        "is saved, and continued by the next command",
    )
    command.add_argument(
        "--trials",
        type=positive_int,
        help="stop when the study has this many trials, of all commands",
    )
    command.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="search this setting of `train` too, or between other values: NAME=LOW:HIGH, "
        "NAME=LOW:HIGH:log or NAME=A,B,C; may be repeated "
        "[latent-size=4:64:log, hidden-size from a quarter of the network's own to twice it, "
        "learning-rate=0.0003:0.01:log, beta=0.5:2:log; latent-size of a ladder: in multiples that "
        "its levels can share]",
    )
    add_flags(command)
    command.set_defaults(run=_tune, after=_after, extra="tune")


def _tune(arguments: argparse.Namespace) -> None:
    if arguments.budget is None and arguments.trials is None:
        raise TrainingError("Say when to stop: --budget MINUTES, --trials N, or both.")
    if arguments.budget is not None and not 0 < arguments.budget < float("inf"):
        raise TrainingError(
            f"--budget must be a number of minutes above 0, not {arguments.budget}."
        )
    given = given_settings(arguments)
    config = Config(**given)
    # Imported here because torch takes seconds to import and --help must be fast.
    from latentd.training.tuning.search import Plan, search

    search(Plan(config, given, arguments.search, arguments.out, arguments.budget, arguments.trials))


def _after(arguments: argparse.Namespace) -> str:
    return "The same command goes on with the search."
