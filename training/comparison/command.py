"""`latentd compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from latentd.training.config import Config
from latentd.training.config_flags import add_flags, given_settings
from latentd.training.evaluation.command import positive_int

_RESERVED: Final = ("model", "seed", "patience", "validate_every")
"""Settings that `compare` chooses itself."""

_DESCRIPTION: Final = """\
What is a VAE for? Train it and the plain autoencoder on the same net, rows and number of steps,
with several seeds, and test eight textbook claims about VAEs:
  a point or a distribution, overfitting, a latent space near N(0, I), new samples,
  interpolation, collapse and its remedy, density estimation, features
The code states what we expect of each claim, and the report gives it before the result. The report
says where the autoencoder wins. Written into --out:
  COMPARISON.md        the report, with its pictures in results/
  comparison.json      every number
  runs/, data/         the runs, each as `train` leaves it; interrupted runs resume
"""
_EXAMPLES: Final = """\
examples:
  latentd compare --out runs/compared                       # the digits: minutes
  latentd compare --data idx:mnist --ood-data idx:fashion-mnist --architecture mlp --epochs 10 \\
      --likelihood bernoulli --binarization dynamic --out runs/compared-mnist

To see what differs between runs that you have trained, use `latentd compare-runs`.
Every other flag is one of `train`'s, for both models: see `train --help`. --epochs are those of
the runs on the most rows; the others have as many steps.
"""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    command = commands.add_parser(
        "compare",
        help="train a VAE and a plain autoencoder: textbook claims, measured",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--out", type=Path, required=True, help="folder of the comparison")
    command.add_argument("--seeds", type=positive_int, default=3, help="runs of each kind [3]")
    command.add_argument(
        "--ood-data", help="a second data set with rows of the same shape, for density estimation"
    )
    command.add_argument("--cache", type=Path, help="where classifiers are kept [~/.cache/latentd]")
    add_flags(command, hidden_fields=_RESERVED)
    command.set_defaults(run=_compare, after=_after)


def _compare(arguments: argparse.Namespace) -> None:
    # Imported here because torch takes seconds to import and --help must be fast.
    from latentd.training import threads
    from latentd.training.comparison import figures, report
    from latentd.training.comparison.plan import Plan
    from latentd.training.comparison.trained_runs import prepare
    from latentd.training.errors import TrainingError

    given = given_settings(arguments)
    for name in _RESERVED:
        if name in given:
            raise TrainingError(
                f"--{name.replace('_', '-')} is set by `compare`; leave it out. (--seeds sets "
                "the number of seeds.)"
            )
    config = Config(**given)
    if config.is_text:
        raise TrainingError(
            f"--data {config.data}: compare measures pictures and vectors; texts have no pixels. "
            "Train and evaluate both --model vae and --model ae instead."
        )
    plan = Plan(config, arguments.seeds, arguments.out, arguments.ood_data, arguments.cache)
    runs = prepare(plan)
    with threads.using(runs.threads):
        results = report.evaluate_all(runs)
        figures.draw(runs, plan.out / report.PICTURES)
    for result in results:
        print(f"{result.verdict:<15}{result.hypothesis.title}: {result.words}")
    print(f"{'written':<15}{report.write(runs, results)}")


def _after(arguments: argparse.Namespace) -> str:
    return f"Rerun the same command to resume: {arguments.out} keeps finished runs."
