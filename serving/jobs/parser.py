"""The command line of `latentd batch`. Imports nothing that takes time to import."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Final

from latentd.errors import EXIT_CONFIG
from latentd.jobs.plan import BATCH_ROWS, FORMATS, RECONSTRUCTIONS, SHARD_ROWS

_INDEX: Final = "JOB_COMPLETION_INDEX"
_EPILOG = """\
examples:
  latentd batch --input digits.npy --bundle models/digits --output scored
  latentd batch --input photos/ --bundle models/photos/3 --output out \\
      --reconstruction png --dry-run

It writes OUTPUT/shards/*.parquet with a manifest each, quarantine.jsonl (rows that could not be
reconstructed, with the reason), sheet.html (the worst scored beside their reconstructions) and, at
the very end, _SUCCESS. To read it: pyarrow.parquet.read_table("scored/shards").

Killed, or the disk was full? Repeat the command: committed shards are kept, none is done twice.
The same command in a second shell shares the work.

exit status:
  0 done; 65 an input is damaged or changed; 66 more rows are quarantined than --max-quarantined
  allows; 69 no server; 70 a worker died; 74 disk full, or finished shards are gone; 78 flags,
  bundle or plan contradict each other; 143 SIGTERM. After 69, 70, 74 and 143: repeat the command.
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
        "of these, or an fsspec URL (s3://bucket/*.npy). A folder gives its images if it has any, "
        "else its Parquet files, else its arrays; linked folders are followed, hidden files left "
        "out, and a line says how many files were taken",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the results, on this machine or a mounted volume; no URL",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--bundle", metavar="DIR", help="models/digits/3, or models/digits for the newest version"
    )
    model.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="go through a server, as background traffic",
    )
    add("--dry-run", action="store_true", help="print the plan and an estimate, write nothing")

    server = parser.add_argument_group("server")
    add = server.add_argument
    add("--model", default="", help="(the server's default)")
    add("--tls-ca", metavar="FILE", help="use TLS, trusting these certificates")
    add("--tls-cert", metavar="FILE", help="show this certificate (mutual TLS)")
    add("--tls-key", metavar="FILE", help="its private key")
    add("--token-file", metavar="FILE", help="send the bearer token in this file")

    what = parser.add_argument_group("what is written of each row")
    what.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the shards (parquet)"
    )
    what.add_argument(
        "--reconstruction", choices=RECONSTRUCTIONS, default="none", help="x' itself (none)"
    )
    what.add_argument("--no-scores", action="store_true", help="no reconstruction_error, kl, elbo")
    what.add_argument("--no-latents", action="store_true", help="no mean and log_var")
    what.add_argument(
        "--draw", action="store_true", help="decode a draw around the mean, not the mean"
    )
    what.add_argument("--seed", type=int, default=0, help="of the draws (0)")

    add = parser.add_argument_group("image inputs").add_argument
    add(
        "--resize",
        action="store_true",
        help="convert them to the model's colors and size, as --image-size does in training",
    )

    tables = parser.add_argument_group("Parquet inputs")
    tables.add_argument("--column", default="", help="of the data (x, or the only one it can be)")
    tables.add_argument("--id-column", default="", help="to name the rows by (their number)")

    how = parser.add_argument_group("how")
    how.add_argument("--processes", type=_whole, default=0, help="0: one a CPU, with CUDA one (0)")
    how.add_argument(
        "--executor",
        choices=("processes", "ray"),
        default="processes",
        help="ray: so many actors of Ray Data instead, on the cluster of $RAY_ADDRESS or on this "
        "machine; every node must see --input and --output (processes)",
    )
    how.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="(auto)")
    how.add_argument(
        "--shard-rows", type=_whole, default=0, help=f"rows committed at once (up to {SHARD_ROWS})"
    )
    how.add_argument(
        "--batch-rows", type=_whole, default=BATCH_ROWS, help=f"rows run at once ({BATCH_ROWS})"
    )
    how.add_argument(
        "--shard-index",
        type=_whole,
        help=f"this machine's number among --shard-count (${_INDEX}, as Kubernetes sets it, or 0)",
    )
    how.add_argument(
        "--shard-count", type=_whole, default=1, help="machines that share the job (1)"
    )
    how.add_argument(
        "--max-quarantined",
        metavar="ROWS",
        default="1%",
        help="rows that may be quarantined, as a number or a percentage of all rows; beyond it the "
        "job ends with status 66 and without _SUCCESS, and repeating the command with a higher "
        "limit runs no row again (1%%)",
    )
    how.add_argument(
        "--niceness",
        type=_whole,
        choices=range(20),
        metavar="0..19",
        default=10,
        help="how far the job gives way to other work on this machine, as of nice(1) (10)",
    )
    how.add_argument(
        "--metrics-file", metavar="FILE", help="keep Prometheus metrics there (FILE.prom)"
    )
    parser.set_defaults(run=_run, extra="jobs")


def _run(args: argparse.Namespace) -> int:
    if args.shard_index is None:
        given = os.environ.get(_INDEX, "0")
        if not given.isdecimal():
            print(
                f"latentd: {_INDEX}={given}: this must be a whole number, this machine's number "
                "among --shard-count. Unset it, or give --shard-index, which wins.",
                file=sys.stderr,
            )
            return EXIT_CONFIG
        args.shard_index = int(given)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # an import has nothing to undo or to say
    try:
        from latentd.jobs import command
    finally:
        signal.signal(signal.SIGINT, before)
    return command.run(args)


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


_whole.__name__ = "whole number"  # argparse names it in its complaints
