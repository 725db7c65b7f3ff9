"""What each `latentd client` call does: read, ask, write, and say in a line what came back."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from latentd import images
from latentd.client import Client
from latentd.client.arguments import seed as chosen_seed
from latentd.client.channel import CredentialFiles
from latentd.client.results import ModelInfo, ModelVersion
from latentd.codec import Array
from latentd.console import inputs, terminal
from latentd.console.outputs import OutputPath
from latentd.errors import ModelNotFound

PICTURES: Final = ("png", "npz", "npy", "folder")
COLUMNS: Final = 16  # of a picture of rows above their reconstructions


def model(args: argparse.Namespace) -> int:
    """What the model is, its limits and what it costs."""
    with _connect(args) as client:
        info = client.get_model()
    if args.json:
        print(json.dumps(dataclasses.asdict(info), indent=2))
        return 0
    terminal.show_model(info)
    return 0


def models(args: argparse.Namespace) -> int:
    """Every model and version that was found, with what became of it."""
    with _connect(args) as client:
        listed = client.list_models()
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in listed], indent=2))
        return 0
    for entry in listed:
        marks = [mark for mark in ("default", "newest") if getattr(entry, mark)]
        since = entry.loading_since and f"since {entry.loading_since}"
        print("  ".join([str(entry.version), entry.state, *marks, entry.reason or since]).rstrip())
    if not listed:
        print("No models.")
    return 0


def encode(args: argparse.Namespace) -> int:
    """x to mean and log_var, and with --draw z, in an .npz."""
    out = OutputPath(args.out, ("npz",))
    seed = chosen_seed(args.seed) if args.draw else None
    with _connect(args) as client:
        info, client = _pin(client)
        x = inputs.read_rows(args.files, args.rows, info.x, _how(args, info))
        parts = [
            client.encode(x[piece], draw=args.draw, seed=seed, offset=piece.start)
            for piece in _pieces(x, info)
        ]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in (("mean", "log_var", "z") if args.draw else ("mean", "log_var"))
    }
    outside = _outside([(part.values_outside_range, len(part.mean)) for part in parts])
    facts = {"values_outside_range": outside, **_facts(info.served_by, seed=seed)}
    out.write_arrays(arrays | facts)
    what = f"{', '.join(arrays)} of {len(x)} rows, float32 {info.latent_size}"
    terminal.say(what, _path(out), info.served_by, seed=seed)
    terminal.say_outside(outside)
    return 0


def decode(args: argparse.Namespace) -> int:
    """Latents to x."""
    out = _destination(args, PICTURES)
    z = inputs.read_latents(args.latents)
    with _connect(args) as client:
        info, client = _pin(client, out)
        x = np.concatenate([client.decode(z[piece]).x for piece in _pieces(z, info)])
    _write(out, x, info, {})
    terminal.say(terminal.described(x), _path(out), info.served_by)
    return 0


def sample(args: argparse.Namespace) -> int:
    """New rows in one answer."""
    out = _destination(args, PICTURES)
    with _connect(args) as client:
        info, client = _pin(client, out)
        got = client.sample(
            args.count,
            seed=args.seed,
            offset=args.offset,
            temperature=args.temperature,
            include_z=out is not None and out.kind == "npz",
        )
    facts = {"z": got.z, "seed": np.uint64(got.seed), "temperature": args.temperature}
    _write(out, got.x, info, facts, first=got.offset)
    terminal.say(
        terminal.described(got.x), _path(out), got.served_by, seed=got.seed, offset=got.offset
    )
    return 0


def stream(args: argparse.Namespace) -> int:
    """New rows as they come, written without being held."""
    out = OutputPath(args.out, ("npy", "npz", "folder"))
    seed = chosen_seed(args.seed)
    with _connect(args) as client:
        info, client = _pin(client, out)
        chunks = client.stream_samples(
            args.count,
            seed=seed,
            offset=args.offset,
            temperature=args.temperature,
            chunk_rows=args.chunk_rows,
        )
        facts = _facts(info.served_by, seed=seed, offset=args.offset, temperature=args.temperature)
        with (
            out.rows(args.count, info.x, args.offset, facts) as write,
            terminal.Progress(args.count) as on,
        ):
            for chunk in chunks:
                write(chunk.x)
                on(len(chunk))
    what = f"{args.count} rows of {info.x.dtype} {terminal.shape_of(info.x.shape)}"
    terminal.say(what, _path(out), info.served_by, seed=seed, offset=args.offset)
    return 0


def reconstruct(args: argparse.Namespace) -> int:
    """x to x', with --scores in nats; a picture shows each row above its x'."""
    out = _destination(args, ("png", "npz"))
    seed = chosen_seed(args.seed) if args.draw else None
    with _connect(args) as client:
        info, client = _pin(client, out)
        x = inputs.read_rows(args.files, args.rows, info.x, _how(args, info))
        parts = [
            client.reconstruct(
                x[piece], draw=args.draw, seed=seed, offset=piece.start, include_scores=args.scores
            )
            for piece in _pieces(x, info)
        ]
    made = np.concatenate([part.x for part in parts])
    scores = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("reconstruction_error", "kl", "elbo")
        if args.scores
    }
    outside = _outside([(part.values_outside_range, len(part)) for part in parts])
    if out is not None and out.kind == "png":
        out.write(images.make_grid(_above(x, made), columns=min(len(x), COLUMNS)))
    elif out is not None:
        arrays = {"x": x, "reconstruction": made, **scores, "values_outside_range": outside}
        out.write_arrays(arrays | _facts(info.served_by, seed=seed))
    terminal.show_table(scores)
    terminal.say(terminal.described(made), _path(out), info.served_by, seed=seed)
    terminal.say_outside(outside)
    return 0


def interpolate(args: argparse.Namespace) -> int:
    """The way from --start to --end."""
    out = _destination(args, PICTURES)
    with _connect(args) as client:
        info, client = _pin(client, out)
        way = client.interpolate(
            inputs.read_point(args.start, info.x, "--start", _how(args, info)),
            inputs.read_point(args.end, info.x, "--end", _how(args, info)),
            steps=args.steps,
            path=args.path,
            include_z=out is not None and out.kind == "npz",
        )
    _write(out, way.x, info, {"z": way.z}, columns=args.steps)
    terminal.say(terminal.described(way.x), _path(out), way.served_by)
    return 0


def score(args: argparse.Namespace) -> int:
    """ELBO and log-likelihood of each row, in nats."""
    seed = chosen_seed(args.seed)
    with _connect(args) as client:
        info, client = _pin(client)
        x = inputs.read_rows(args.files, args.rows, info.x, _how(args, info))
        # The server bounds rows x draws: max_rows * 64.
        most = info.limits.max_rows * 64 // max(1, args.draws)
        parts = [
            client.score(x[piece], draws=args.draws, seed=seed, offset=piece.start)
            for piece in _pieces(x, info, most)
        ]
    names = ("elbo", "log_likelihood", "kl")
    terminal.show_table(
        {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
    what = f"{len(x)} rows, {parts[0].draws} draws each, in nats"
    terminal.say(what, None, info.served_by, seed=seed)
    terminal.say_outside(_outside([(part.values_outside_range, len(part.elbo)) for part in parts]))
    return 0


def health(args: argparse.Namespace) -> int:
    """What the server says of itself; status 0 only if that is SERVING."""
    with _connect(args, healthy_only=False) as client:
        try:
            state = client.health(args.service)
        except ModelNotFound:  # the health service answers so about services it does not know
            state = "SERVICE_UNKNOWN"
    print(state)
    return 0 if state == "SERVING" else 1


CALLS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    call.__name__: call
    for call in (
        *(model, models, encode, decode, sample, stream, reconstruct, interpolate, score, health),
    )
}


def _connect(args: argparse.Namespace, healthy_only: bool = True) -> Client:
    return Client(
        args.server,
        timeout=args.timeout or None,
        model=args.model,
        version=args.version,
        background=args.background,
        healthy_only=healthy_only,
        **CredentialFiles(args.tls_ca, args.tls_cert, args.tls_key, args.token_file).read(),
    )


def _pin(client: Client, out: OutputPath | None = None) -> tuple[ModelInfo, Client]:
    """The model, refused if `out` cannot show it, and a client for just its version: one file
    never holds rows of two."""
    info = client.get_model()
    if out is not None:
        out.check(info.x)
    return info, client.with_version(info.served_by)


def _outside(parts: Sequence[tuple[Array | None, int]]) -> Array | None:
    """How many values of each row lie outside the model's range, from each answer's counts and its
    number of rows; None: none does."""
    if all(counts is None for counts, _ in parts):
        return None
    return np.concatenate(
        [np.zeros(rows, np.uint32) if counts is None else counts for counts, rows in parts]
    )


def _pieces(rows: Array, info: ModelInfo, most: int = 1 << 30) -> Iterator[slice]:
    """Ranges of rows that fit into one call, each with room for the answer."""
    row_bytes = max(rows[0].nbytes if len(rows) else 1, info.x.nbytes, 8 * info.latent_size)
    by_bytes = info.limits.max_message_bytes // (2 * row_bytes)
    step = max(1, min(info.limits.max_rows, by_bytes, most))
    for start in range(0, len(rows), step):
        yield slice(start, min(len(rows), start + step))


def _how(args: argparse.Namespace, info: ModelInfo) -> inputs.How:
    return inputs.How(info.likelihood, args.resize, args.column)


def _destination(args: argparse.Namespace, kinds: tuple[str, ...]) -> OutputPath | None:
    return OutputPath(args.out, kinds) if args.out else None


def _path(out: OutputPath | None) -> Path | None:
    return out.path if out else None


def _write(
    out: OutputPath | None,
    x: Array,
    info: ModelInfo,
    facts: dict[str, Any],
    columns: int = 0,
    first: int = 0,
) -> None:
    if out is None:
        return
    if out.kind == "png":
        out.write(images.make_grid(x, columns))
    elif out.kind == "npz":
        out.write_arrays({"x": x, **facts} | _facts(info.served_by, offset=first))
    else:
        with out.rows(len(x), info.x, first, {}) as write:
            write(x)


def _above(x: Array, made: Array) -> Array:
    """x and made, by lines of COLUMNS: rows, and below each its reconstruction."""
    lines = []
    for start in range(0, len(x), COLUMNS):
        for rows in (x[start : start + COLUMNS], made[start : start + COLUMNS]):
            blank = min(COLUMNS, len(x)) - len(rows)
            lines += [rows, np.full((blank, *x.shape[1:]), 255, x.dtype)]
    return np.concatenate(lines)


def _facts(served_by: ModelVersion, **numbers: Any) -> dict[str, Any]:
    """What an .npz says about itself, enough to make it again."""
    given = {name: number for name, number in numbers.items() if number is not None}
    if "seed" in given:
        given["seed"] = np.uint64(given["seed"])
    return given | dataclasses.asdict(served_by)
