"""`latentd evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

_DESCRIPTION: Final = """\
Measure a trained model on rows it has not learned from, and print a table:
  -ELBO, NLL          in nats; the NLL importance-weighted (Burda et al., 2016)
  test - train        the same on training rows: how much it has overfitted
  active units, KL    which latent dimensions are used; collapse is named, with what to try
  aggregate           is the aggregate posterior N(0, I)? norms, variance, MMD with its null
  linear probe        what logistic regression reads off the means, where there are labels
  texts               of a model of text: a byte's NLL, perplexity, how many greedy decodes of the
                      prior are distinct, what it makes up, interpolations between test rows
  columns             of a table: how well each is reconstructed; samples against test rows
  Frechet distance    of samples from test rows, on the features of a classifier trained here
and write into the run's folder, or --out:
  evaluation.json     all of it; `export` puts it into the bundle's manifest
  kl.png, latent.png, samples.png; of text .txt files, of tables columns.png and .csv files
                      instead of samples.png
"""
_EXAMPLES: Final = """\
examples:
  latentd evaluate runs/mnist
  latentd evaluate runs/mnist --rows 500 --importance-samples 100     # a quick look
  latentd evaluate runs/mnist/last.pt --out runs/mnist-last

A plain autoencoder has no ELBO and no NLL; the cross-entropy of grey pixels is none either. Both
are said, not shown. The NLL of --likelihood gaussian is of a density. Compare numbers only where
data, split, values and S are the same: all four are printed.
"""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    command = commands.add_parser(
        "evaluate",
        help="checkpoint -> likelihood, latent space, samples: numbers and pictures",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "checkpoint", type=Path, metavar="RUN", help="a run's folder (its best.pt) or a checkpoint"
    )
    command.add_argument("--data", help="rows, as in train; default: what the model was trained on")
    command.add_argument(
        "--importance-samples",
        type=positive_int,
        help="draws a row, S of the NLL [5000; of text 500]",
    )
    command.add_argument("--rows", type=positive_int, help="test rows, the first ones [all]")
    command.add_argument("--seed", type=seed, default=0, help="decides every draw [0]")
    command.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute [auto]"
    )
    command.add_argument("--out", type=Path, help="folder to write into [the run's]")
    command.add_argument("--cache", type=Path, help="where classifiers are kept [~/.cache/latentd]")
    command.set_defaults(run=_evaluate, after=lambda _: "Nothing was written.")


def positive_int(text: str) -> int:
    """The argparse type of a positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def seed(text: str) -> int:
    """The argparse type of a seed."""
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 2^63 - 1")
    return number


def _evaluate(arguments: argparse.Namespace) -> None:
    # Imported here because torch takes seconds to import and --help must be fast.
    from latentd.training import threads
    from latentd.training.errors import TrainingError
    from latentd.training.evaluation import figures, report, results_file
    from latentd.training.evaluation.loaded_run import open_run
    from latentd.training.evaluation.text_table import format_table

    loaded = open_run(arguments.checkpoint, arguments.data, arguments.device)
    out = arguments.out or loaded.path.parent
    for flag, folder in (("--out", out), ("--cache", arguments.cache)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{flag} {folder} cannot be made: {error.strerror}.") from None
    options = report.Options(
        arguments.importance_samples, arguments.rows, arguments.seed, arguments.cache
    )
    with threads.using(threads.of_run(loaded.saved.config.threads)):
        result = report.evaluate(loaded, options)
        pictures = figures.draw(out, loaded, result)
    print(format_table(result))
    print(f"{'written':<22}{', '.join(map(str, (results_file.write(out, result), *pictures)))}")
