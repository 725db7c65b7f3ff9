"""The flags of `latentd batch`. This module imports nothing slow: --help must be fast."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Final

from latentd.errors import EXIT_CONFIG
from latentd.jobs.plan import (
    BATCH_ROWS,
    ENCODINGS,
    FORMATS,
    RECONSTRUCTIONS,
    SHARD_ROWS,
    Z_DTYPES,
)

_INDEX: Final = "JOB_COMPLETION_INDEX"
_EPILOG = """\
examples:
  latentd batch --input digits.npy --bundle models/digits --output scored
  latentd batch --input photos/ --bundle models/photos/3 --output out \\
      --reconstruction png --dry-run
  latentd batch --input photos/ --bundle models/photos --output latents --encode mean

It writes OUTPUT/shards/*.parquet with a manifest each, quarantine.jsonl (rows that could not be
reconstructed, with the reason), sheet.html (rows with the largest errors and their reconstructions)
and, last, _SUCCESS. To read it: pyarrow.parquet.read_table("scored/shards").

Killed, or the disk was full? Rerun the command: committed shards are kept, none is done twice.
The same command in a second shell shares the work.

exit status:
  0 done; 65 an input is damaged or changed; 66 more rows are quarantined than --max-quarantined
  allows; 69 server unavailable; 70 a worker died; 74 disk full, or finished shards are missing;
  78 flags, bundle or plan contradict each other; 143 SIGTERM. After 69, 70, 74, 143: rerun it.
"""


def add_batch_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "batch",
        help="reconstruct, encode and score whole data sets",
        description="Send every row of a data set through a model: scores, latents and, on "
        "request, reconstructions. Resumable; every row is written once or quarantined.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, .npy, .npz (or FILE.npz:key), .parquet, IDX (.gz or not), a folder or glob "
        "of these, for a model of text a .txt file with a text in each line, for one of a table "
        "a .csv or .tsv, or a glob that ends so, with a line of column names, or an fsspec URL "
        "(s3://bucket/*.npy). Of a folder the images are read if it has any, else the Parquet "
        "files, else the arrays; linked folders are followed, hidden files skipped, and a line "
        "says how many files are read",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the results, local or on a mounted volume; not a URL",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--bundle", metavar="DIR", help="models/digits/3, or models/digits for the newest version"
    )
    model.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="run the model on a server, as background traffic",
    )
    add("--dry-run", action="store_true", help="print the plan and an estimate, write nothing")

    server = parser.add_argument_group("server")
    add = server.add_argument
    add("--model", default="", help="(the server's default)")
    add("--tls-ca", metavar="FILE", help="use TLS, trusting these certificates")
    add("--tls-cert", metavar="FILE", help="present this certificate (mutual TLS)")
    add("--tls-key", metavar="FILE", help="its private key")
    add("--token-file", metavar="FILE", help="send the bearer token in this file")

    columns = parser.add_argument_group("columns")
    columns.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the shards (parquet)"
    )
    columns.add_argument(
        "--reconstruction",
        choices=RECONSTRUCTIONS,
        default="none",
        help="format of x'; text: strings, of a model of text (none)",
    )
    columns.add_argument(
        "--scores",
        action=argparse.BooleanOptionalAction,
        help="write reconstruction_error, kl, elbo (if the model defines them)",
    )
    columns.add_argument(
        "--threshold",
        type=float,
        metavar="NATS",
        help="write is_outlier: whether a row's reconstruction_error exceeds this (the bundle's "
        "threshold, if it has one)",
    )
    columns.add_argument(
        "--contributions",
        action="store_true",
        help="write what each pixel or column adds to its row's reconstruction_error, and show it "
        "in the contact sheet: why a row is odd. Of tables also excess.NAME, what exceeds the "
        "column's median among the training rows: rank columns by it, as their units differ",
    )
    columns.add_argument("--no-latents", action="store_true", help="omit mean and log_var")
    columns.add_argument(
        "--draw",
        action="store_true",
        help="decode a draw from the latent distribution, not its mean",
    )
    columns.add_argument(
        "--draw-x",
        action="store_true",
        help="draw the reconstruction from p(x | z): each byte of a text, each value of a table "
        "(default: greedy decoding, means and most probable levels)",
    )
    columns.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    columns.add_argument(
        "--encode",
        choices=ENCODINGS,
        default="",
        help="run only the encoder and write only z, the latents that other models train on: "
        "their mean, or a draw of --seed",
    )
    columns.add_argument(
        "--z-dtype", choices=Z_DTYPES, default="float32", help="of z with --encode (float32)"
    )

    add = parser.add_argument_group("image inputs").add_argument
    add(
        "--fit",
        choices=("refuse", "resize", "crop"),
        default="refuse",
        help="images of another size or other colors than the model's: refuse them; or convert "
        "them and resize them to its default size, as --image-size does in training; or crop them "
        "to its shape first (refuse)",
    )

    tables = parser.add_argument_group("table inputs: CSV and Parquet")
    tables.add_argument(
        "--column", default="", help="column of the data (x, or the only suitable one)"
    )
    tables.add_argument(
        "--id-column", default="", help="column of the rows' names (the row numbers)"
    )

    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--processes",
        type=_non_negative_int,
        default=0,
        help="0: one per CPU, or one with CUDA (0)",
    )
    execution.add_argument(
        "--executor",
        choices=("processes", "ray"),
        default="processes",
        help="ray: run --processes actors of Ray Data, on the cluster of $RAY_ADDRESS or on this "
        "machine; every node must have --input and --output at the same paths (processes)",
    )
    execution.add_argument(
        "--provider", choices=("auto", "cuda", "cpu"), default="auto", help="(auto)"
    )
    execution.add_argument(
        "--shard-rows",
        type=_non_negative_int,
        default=0,
        help=f"rows per shard (up to {SHARD_ROWS})",
    )
    execution.add_argument(
        "--batch-rows",
        type=_non_negative_int,
        default=BATCH_ROWS,
        help=f"rows per batch, fewer if they are large ({BATCH_ROWS})",
    )
    execution.add_argument(
        "--shard-index",
        type=_non_negative_int,
        help=f"index of this machine, below --shard-count (${_INDEX}, set by Kubernetes, or 0)",
    )
    execution.add_argument(
        "--shard-count", type=_non_negative_int, default=1, help="machines that share the job (1)"
    )
    execution.add_argument(
        "--max-quarantined",
        metavar="ROWS",
        default="1%",
        help="limit of quarantined rows, as a number or a percentage of all rows; beyond it "
        "the job ends with status 66 and without _SUCCESS; rerunning it with a higher limit runs "
        "no row again (1%%)",
    )
    execution.add_argument(
        "--niceness",
        type=_non_negative_int,
        choices=range(20),
        metavar="0..19",
        default=10,
        help="CPU priority as in nice(1): higher lets other processes go first (10)",
    )
    execution.add_argument(
        "--metrics-file", metavar="FILE", help="write Prometheus metrics to FILE.prom"
    )
    parser.set_defaults(run=_run, extra="jobs")


def _run(args: argparse.Namespace) -> int:
    if args.shard_index is None:
        given = os.environ.get(_INDEX, "0")
        if not given.isdecimal():
            print(
                f"latentd: {_INDEX}={given}: must be an integer from 0, the index of this machine. "
                "Unset it, or set --shard-index, which takes precedence.",
                file=sys.stderr,
            )
            return EXIT_CONFIG
        args.shard_index = int(given)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # an import needs no cleanup or message
    try:
        from latentd.jobs import command
    finally:
        signal.signal(signal.SIGINT, before)
    return command.run(args)


def _non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


_non_negative_int.__name__ = "non-negative integer"  # argparse shows it in its errors
