"""The flags of `latentd client ...`, and its errors as a message and an exit status.

Exit status: 0 done; 1 the server failed or is unreachable; 2 invalid input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Final

from latentd.errors import (
    BadData,
    ConfigError,
    InvalidArgument,
    LatentdError,
    ModelNotFound,
    Unavailable,
)

SERVER: Final = "localhost:50051"
_VARIABLE: Final = "LATENTD_SERVER"

_FILES: Final = (
    "images, .npy, .npz (array x, or FILE.npz:key), .parquet or IDX files, folders or "
    "globs of these; for a model with columns .csv, .tsv or .parquet, whose other columns are "
    "ignored; for a model of text .txt, one text a line, or text:WORDS"
)
_OUT: Final = (
    ".png: one grid; .npz or .npy: arrays; no suffix: a folder of PNG files; .csv or .parquet: a "
    "table, of a model with columns; .txt: lines, of a model of text"
)

Subparsers = argparse._SubParsersAction  # argparse's own name for what add_subparsers returns


def add_client_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add `client` and its calls. Each sets `run`, which returns the exit status."""
    parser = subparsers.add_parser(
        "client",
        help="call a server",
        description="Call a latentd server.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  latentd client sample --count 16 --seed 7 --out grid.png
  latentd client sample --model photos --size 96x160 --out photo.png
  latentd client encode digits.npz --rows 0:100 --out latents.npz
  latentd client reconstruct photo.jpg --fit resize --out side_by_side.png
  latentd client interpolate --start seed:7 --end photo.png --steps 9 --out path.png
  latentd client stream --model names --count 1000 --draw-x --out names.txt
  latentd client CALL --help""",
    )
    calls = parser.add_subparsers(metavar="CALL", required=True)
    model = _add(calls, "model", "describe a model, its limits and its cost")
    model.add_argument("--json", action="store_true", help="print JSON")
    models = _add(calls, "models", "list the models and versions that the server found")
    models.add_argument("--json", action="store_true", help="print JSON")
    drawn = _add(
        calls,
        "map",
        "draw training rows in latent space, if the bundle keeps some (export --map-rows)",
        "map --out map.png",
    )
    drawn.add_argument(
        "--out",
        required=True,
        help=".png: the rows along the two principal components of their means, colored by label, "
        "or else by reconstruction error; .npz: all arrays",
    )
    _add_with_files(calls)
    _add_with_latents(calls)
    health = _add(calls, "health", "print the server's health; status 0 if SERVING, else 1")
    health.add_argument("--service", default="", help="service to check (the whole server)")


def _add_with_files(calls: Subparsers[argparse.ArgumentParser]) -> None:
    encode = _add(
        calls,
        "encode",
        "encode data to mean and log_var of its latents",
        "encode digits.npz --rows 0:100 --out latents.npz",
    )
    _add_files(encode)
    encode.add_argument("--out", required=True, help=".npz with mean, log_var and, with --draw, z")
    _add_draw(encode)
    _add_tiling(encode)

    reconstruct = _add(
        calls,
        "reconstruct",
        "reconstruct rows",
        "reconstruct one.png two.png --out side_by_side.png --scores",
    )
    _add_files(reconstruct)
    reconstruct.add_argument(
        "--out",
        help=".png: rows above their reconstructions; .npz: x, reconstruction; .txt, .csv or "
        ".parquet: the reconstructions, of a model of text or with columns",
    )
    reconstruct.add_argument(
        "--scores", action="store_true", help="print reconstruction error, KL and ELBO"
    )
    _add_outliers(reconstruct, "with --scores: ")
    _add_draw(reconstruct)
    _add_draw_x(reconstruct)
    _add_tiling(reconstruct)

    score = _add(
        calls,
        "score",
        "score how likely each row is, in nats",
        "score digits.npz --rows 0:8 --draws 64 --contributions --out why.png",
    )
    _add_files(score)
    score.add_argument(
        "--out",
        help=".npz: scores, and contributions if requested; with --contributions .png: rows above "
        "heat maps",
    )
    _add_outliers(score)
    score.add_argument(
        "--draws", type=int, default=0, help="for each row (0: the server's default)"
    )
    score.add_argument("--seed", type=int, help="of the draws (a new one, printed)")


def _add_with_latents(calls: Subparsers[argparse.ArgumentParser]) -> None:
    decode = _add(calls, "decode", "decode latents to data", "decode latents.npz --out grid.png")
    decode.add_argument("latents", help=".npy, or .npz (array z, else mean, or FILE.npz:key)")
    decode.add_argument("--out", help=_OUT)
    _add_draw_x(decode)
    decode.add_argument("--seed", type=int, help="of --draw-x (a new one, printed)")
    _add_tiling(decode)

    for name, text, example in (
        ("sample", "sample new data in one call", "sample --count 16 --seed 7 --out grid.png"),
        (
            "stream",
            "sample any amount of new data as a stream",
            "stream --count 100000 --out samples.npy",
        ),
    ):
        sample = _add(calls, name, text, example)
        sample.add_argument("--count", type=int, default=16, help="rows (16)")
        sample.add_argument("--seed", type=int, help="0 to 2^64 - 1 (a new one, printed)")
        sample.add_argument("--offset", type=int, default=0, help="index of the first row (0)")
        sample.add_argument(
            "--temperature", type=float, default=1.0, help="below 1: more typical, less varied (1)"
        )
        _add_draw_x(sample)
        _add_size(sample, "of the rows,")
        _add_tiling(sample)
        if name == "sample":
            sample.add_argument("--out", help=_OUT)
        else:
            sample.add_argument(
                "--out",
                required=True,
                help=".npy, .npz or a folder of PNG files; .txt: of a model of text; .csv or "
                ".parquet: of a model with columns",
            )
            sample.add_argument(
                "--chunk-rows",
                type=int,
                default=0,
                help="in each message (0: the server's default)",
            )

    interpolate = _add(
        calls,
        "interpolate",
        "interpolate between two points",
        "interpolate --start seed:7 --end seed:7@1 --steps 9 --out path.png",
    )
    for end in ("--start", "--end"):
        interpolate.add_argument(
            end,
            required=True,
            metavar="POINT",
            help="a file of one row, such as an image; seed:7 or seed:7@3 (row 3 of seed 7); "
            "z:FILE.npy (one latent); text:WORDS, for a model of text",
        )
    _add_reading(interpolate)
    _add_size(interpolate, "of ends that are samples, and with --fit of files;")
    _add_tiling(interpolate)
    interpolate.add_argument("--steps", type=int, default=9, help="including both ends (9)")
    interpolate.add_argument("--path", choices=("slerp", "lerp"), default="slerp")
    interpolate.add_argument("--out", help=_OUT)


def _add(
    calls: Subparsers[argparse.ArgumentParser], name: str, text: str, example: str = ""
) -> argparse.ArgumentParser:
    parser = calls.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example: latentd client {example or name}",
    )
    common = parser.add_argument_group("server")
    common.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"environment {_VARIABLE} ({SERVER})",
    )
    common.add_argument("--model", default="", help="(the server's default)")
    common.add_argument("--version", type=int, default=0, help="of the model (the newest)")
    common.add_argument(
        "--timeout", type=float, default=30.0, help="seconds for each call, 0: no limit (30)"
    )
    common.add_argument(
        "--background", action="store_true", help="let other clients' calls go first"
    )
    common.add_argument("--tls-ca", metavar="FILE", help="use TLS, trusting these certificates")
    common.add_argument("--tls-cert", metavar="FILE", help="present this certificate (mutual TLS)")
    common.add_argument("--tls-key", metavar="FILE", help="its private key")
    common.add_argument("--token-file", metavar="FILE", help="send the bearer token in this file")
    parser.set_defaults(run=_run, call=name, extra="client")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=_FILES)
    parser.add_argument(
        "--rows", type=_rows, default=slice(None), metavar="FROM:TO", help="only these rows"
    )
    _add_reading(parser)
    _add_size(parser, "with --fit:")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit",
        choices=("refuse", "resize", "crop"),
        default="refuse",
        help="images of another size or other colors than the model's: refuse them; or convert "
        "them and resize them, as --image-size does in training; or crop them to its shape first "
        "(refuse)",
    )
    parser.add_argument(
        "--column", default="", help="of Parquet files (x, or the only suitable one)"
    )


def _add_size(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--size",
        default="",
        metavar="SIZE",
        help=f"{what} if the model takes several sizes: 96x160, as in the model's x, or h=96,w=160 "
        "(the default size)",
    )


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tiling",
        choices=("when-needed", "always"),
        default="",
        help="run large rows in tiles: where whole ones would not fit into memory, or all (never)",
    )


def _add_outliers(parser: argparse.ArgumentParser, needs: str = "") -> None:
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="NATS",
        help=f"{needs}rows whose reconstruction_error, -log p(x|z) at the mean, exceeds this are "
        "outliers (the bundle's, if it has one)",
    )
    parser.add_argument(
        "--outliers-only", action="store_true", help=f"{needs}print the lines of outliers only"
    )
    parser.add_argument(
        "--contributions",
        action="store_true",
        help="what each pixel or column adds to its row's reconstruction_error: as heat maps in a "
        ".png, as arrays in an .npz (contributions, and of tables their excess over each column's "
        "median among the training rows). Of rows that are no images the largest are printed",
    )


def _add_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draw", action="store_true", help="draw from each latent distribution")
    parser.add_argument("--seed", type=int, help="of the draw (a new one, printed)")


def _add_draw_x(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draw-x",
        action="store_true",
        help="of texts: draw each byte, not the likeliest one; of tables: draw each value, so "
        "that rows scatter as the data does, instead of its mean or likeliest level",
    )


def _rows(text: str) -> slice:
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(start) if start else None, int(stop) if stop else None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid range {text!r}, use for example 0:8") from None


def _run(args: argparse.Namespace) -> int:
    # Silence gRPC's log lines. It reads the variable when it is imported, hence the late import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from latentd.console import commands

    # The client's warnings, such as what it waits for, on a line that progress has left.
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    logging.basicConfig(format=f"{clear}latentd: %(message)s")
    source = "--server"
    if args.server is None and (server := os.environ.get(_VARIABLE)) is not None:
        args.server, source = server, _VARIABLE
    elif args.server is None:
        args.server = SERVER
    try:
        return commands.CALLS[args.call](args)
    except KeyboardInterrupt:
        return _fail("Interrupted; nothing was written.", 130)
    except BrokenPipeError:
        raise  # `latentd` handles it; it is an OSError
    except Unavailable as error:
        return _fail(f"{error}{_advice(str(error), source)}", 1)
    except ConfigError as error:
        is_address = source == _VARIABLE and str(error).startswith("Invalid address")
        return _fail(f"{_VARIABLE}: {error}" if is_address else str(error), 2)
    except (InvalidArgument, BadData, ModelNotFound) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"{error.filename or 'A file'}: {error.strerror or error}.", 2)
    except LatentdError as error:
        return _fail(str(error), 1)


def _advice(failure: str, source: str) -> str:
    """How to fix an unreachable server, if gRPC's message has the cause."""
    if "proxy" in failure:
        return ""  # the message names the variable
    if "Connection refused" in failure or "No such file" in failure:
        return (
            " Is a server running there? Start one with `latentd serve --bundles FOLDER`, or set "
            f"{source} to another server."
        )
    if "errors resolving" in failure:
        return f" The host name cannot be resolved; check {source}."
    return ""


def _fail(message: str, status: int) -> int:
    print(f"latentd: {message}", file=sys.stderr)
    return status
