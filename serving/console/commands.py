"""The `latentd client` commands: read inputs, call the server, write results, print a summary."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from latentd.client import Client
from latentd.client.arguments import seed as chosen_seed
from latentd.client.channel import CredentialFiles
from latentd.client.results import ModelInfo
from latentd.console import groups, inputs, outliers, outputs, pictures, scatter, sizes, terminal
from latentd.console.groups import Group
from latentd.console.outputs import TABLES, OutputPath
from latentd.errors import InvalidArgument, ModelNotFound
from latentd.shapes import format_lengths

OUTPUT_KINDS: Final = ("png", "npz", "npy", "txt", "folder", "csv", "parquet")


def model(args: argparse.Namespace) -> int:
    """Print the model, its limits and its cost."""
    with _connect(args) as client:
        info = client.get_model()
    if args.json:
        print(json.dumps(terminal.model_document(info), indent=2, allow_nan=False))
        return 0
    terminal.show_model(info)
    return 0


def models(args: argparse.Namespace) -> int:
    """Print every model and version that the server found, with its state."""
    with _connect(args) as client:
        listed = client.list_models()
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in listed], indent=2))
        return 0
    for entry in listed:
        marks = ["newest"] if entry.newest else []
        if entry.newest and entry.default:  # it answers calls that name nothing
            marks.append("default model")
        since = entry.loading_since and f"since {entry.loading_since}"
        print("  ".join([str(entry.version), entry.state, *marks, entry.reason or since]).rstrip())
    if not listed:
        print("No models.")
    return 0


def draw_map(args: argparse.Namespace) -> int:
    """Draw the map of the bundle's training rows, or write its arrays."""
    out = OutputPath(args.out, ("png", "npz"))
    with _connect(args) as client:
        found = client.get_map()
    if out.kind == "png":
        out.write(scatter.draw(found))
    else:
        arrays = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        arrays["sprites"] = np.frombuffer(found.sprites, np.uint8)
        del arrays["served_by"]
        out.write_arrays(arrays | outputs.provenance(found.served_by))
    shares = " and ".join(f"{share:.0%}" for share in found.explained_variance)
    active = f"{np.count_nonzero(found.active)} of {found.active.size} units active"
    what = f"{len(found)} training rows, {active}; the components explain {shares} of the variance"
    terminal.print_result(what, outputs.path_of(out), found.served_by)
    return 0


def encode(args: argparse.Namespace) -> int:
    """Write mean and log_var of x, and with --draw z, to an .npz."""
    out = OutputPath(args.out, ("npz",))
    seed = chosen_seed(args.seed) if args.draw else None
    with _connect(args) as client:
        info, client = _pin(client, None, args.size)
        found = _read(args, info)
        groups.check_one_size(found)
        parts = groups.call_each(
            found,
            groups.pieces_of(info, info.shapes_of_x),
            lambda x, offset: client.encode(
                x, draw=args.draw, seed=seed, offset=offset, tiling=args.tiling
            ),
        )
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("mean", "log_var", "z")
        if getattr(parts[0], name) is not None
    }
    outside = groups.values_outside_range(
        found, [(part.values_outside_range, len(part.mean)) for part in parts]
    )
    metadata = {"values_outside_range": outside, **outputs.provenance(info.served_by, seed=seed)}
    out.write_arrays(arrays | metadata)
    shape = format_lengths(arrays["mean"].shape[1:])
    what = f"{', '.join(arrays)} of {len(arrays['mean'])} rows, float32 {shape}"
    terminal.print_result(what, outputs.path_of(out), info.served_by, seed=seed)
    terminal.print_outside_range(outside)
    terminal.print_tiled(parts)
    return 0


def decode(args: argparse.Namespace) -> int:
    """Decode latents."""
    out = outputs.output_path(args.out, OUTPUT_KINDS)
    seed = chosen_seed(args.seed) if args.draw_x else None
    z = inputs.read_latents(args.latents)
    with _connect(args) as client:
        info, client = _pin(client, out)
        z = inputs.latent_rows(z, info)
        parts = [
            client.decode(
                z[piece], draw_x=args.draw_x, seed=seed, offset=piece.start, tiling=args.tiling
            )
            for piece in groups.pieces_of(info, info.shapes_of_z)(z)
        ]
        x = np.concatenate([part.x for part in parts])
    outputs.write_rows(out, x, info, {"seed": None if seed is None else np.uint64(seed)})
    terminal.print_texts(info, outputs.path_of(out), *parts)
    what = terminal.describe_rows(info, len(x), x.shape[1:])
    terminal.print_result(what, outputs.path_of(out), info.served_by, seed=seed)
    terminal.print_tiled(parts)
    return 0


def sample(args: argparse.Namespace) -> int:
    """Sample new rows in one call."""
    out = outputs.output_path(args.out, OUTPUT_KINDS)
    with _connect(args) as client:
        info, client = _pin(client, out, args.size)
        result = client.sample(
            args.count,
            sizes=sizes.sizes(info),
            seed=args.seed,
            offset=args.offset,
            temperature=args.temperature,
            draw_x=args.draw_x,
            tiling=args.tiling,
            include_z=out is not None and out.kind == "npz",
        )
    metadata = {"z": result.z, "seed": np.uint64(result.seed), "temperature": args.temperature}
    outputs.write_rows(out, result.x, info, metadata, first=result.offset)
    terminal.print_texts(info, outputs.path_of(out), result)
    terminal.print_result(
        terminal.describe_rows(info, len(result), result.x.shape[1:]),
        outputs.path_of(out),
        result.served_by,
        seed=result.seed,
        offset=result.offset,
    )
    terminal.print_tiled([result])
    return 0


def stream(args: argparse.Namespace) -> int:
    """Sample new rows as a stream, writing each chunk as it arrives."""
    out = OutputPath(args.out, ("npy", "npz", "txt", "folder", "csv", "parquet"))
    seed = chosen_seed(args.seed)
    with _connect(args) as client:
        info, client = _pin(client, out, args.size)
        chunks = client.stream_samples(
            args.count,
            sizes=sizes.sizes(info),
            seed=seed,
            offset=args.offset,
            temperature=args.temperature,
            draw_x=args.draw_x,
            chunk_rows=args.chunk_rows,
            tiling=args.tiling,
        )
        metadata = outputs.provenance(
            info.served_by, seed=seed, offset=args.offset, temperature=args.temperature
        )
        with (
            out.rows(args.count, info.default.x, args.offset, metadata) as write,
            terminal.ProgressBar(args.count) as progress,
        ):
            for chunk in chunks:
                write(chunk.x)
                progress(len(chunk))
    what = terminal.describe_rows(info, args.count, info.default.x.shape)
    terminal.print_result(what, outputs.path_of(out), info.served_by, seed=seed, offset=args.offset)
    terminal.print_tiled([chunk])
    return 0


def reconstruct(args: argparse.Namespace) -> int:
    """Reconstruct x, with --scores in nats; an image shows each row above its reconstruction."""
    out = outputs.output_path(args.out, ("png", "npz", "txt", "csv", "parquet"))
    seed = chosen_seed(args.seed) if args.draw or args.draw_x else None
    with _connect(args) as client:
        info, client = _pin(client, out, args.size)
        found = _read(args, info)
        if out is not None and out.kind == "npz":
            groups.check_one_size(found)
        outliers.check_flags(args, info, out, found)
        parts = groups.call_each(
            found,
            groups.pieces_of(info, info.shapes_of_x, contributions=args.contributions),
            lambda x, offset: client.reconstruct(
                x,
                draw=args.draw,
                draw_x=args.draw_x,
                seed=seed,
                offset=offset,
                include_scores=args.scores,
                threshold=args.threshold,
                include_contributions=args.contributions,
                tiling=args.tiling,
            ),
        )
    scores = {
        name: groups.in_order(found, np.concatenate([getattr(part, name) for part in parts]))
        for name in ("reconstruction_error", "kl", "elbo")
        if args.scores
    } | outliers.columns(found, parts)
    outside = groups.values_outside_range(
        found, [(part.values_outside_range, len(part)) for part in parts]
    )
    if out is not None and out.kind == "png":
        lines = [[group.x for group in found], [part.x for part in parts]]
        out.write(pictures.render(found, lines, outliers.contributions(parts)))
    elif out is not None and out.kind in ("txt", *TABLES):
        outputs.write_rows(out, np.concatenate([part.x for part in parts]), info, {})
    elif out is not None:
        arrays = {
            "x": found[0].x,
            "reconstruction": np.concatenate([part.x for part in parts]),
            **scores,
            **outliers.arrays(info, parts),
            "values_outside_range": outside,
        }
        out.write_arrays(arrays | outputs.provenance(info.served_by, seed=seed))
    terminal.print_texts(info, outputs.path_of(out), *parts)
    terminal.show_table(scores, scores["is_outlier"] if args.outliers_only else None)
    outliers.print_outliers(info, found, parts)
    what = groups.describe(found)
    if info.default.x.is_text:  # which have one size
        what = terminal.describe_rows(info, len(found[0].x), info.default.x.shape)
    terminal.print_result(what, outputs.path_of(out), info.served_by, seed=seed)
    terminal.print_outside_range(outside)
    terminal.print_tiled(parts)
    return 0


def interpolate(args: argparse.Namespace) -> int:
    """Interpolate from --start to --end."""
    out = outputs.output_path(args.out, OUTPUT_KINDS)
    with _connect(args) as client:
        info, client = _pin(client, out, args.size)
        options = inputs.ReadOptions(args.fit, args.column)
        result = client.interpolate(
            inputs.read_point(args.start, info, "--start", options),
            inputs.read_point(args.end, info, "--end", options),
            steps=args.steps,
            sizes=sizes.sizes(info) if args.size else None,
            path=args.path,
            tiling=args.tiling,
            include_z=out is not None and out.kind == "npz",
        )
    outputs.write_rows(out, result.x, info, {"z": result.z}, columns=args.steps)
    terminal.print_texts(info, outputs.path_of(out), result)
    what = terminal.describe_rows(info, len(result), result.x.shape[1:])
    terminal.print_result(what, outputs.path_of(out), result.served_by)
    terminal.print_tiled([result])
    return 0


def score(args: argparse.Namespace) -> int:
    """Print ELBO and log-likelihood of each row, in nats, and which rows are outliers; an image
    shows each row above what its pixels contribute."""
    out = outputs.output_path(args.out, ("png", "npz"))
    if out is not None and out.kind == "png" and not args.contributions:
        raise InvalidArgument("--out", "a picture shows contributions", "Add --contributions")
    seed = chosen_seed(args.seed)
    with _connect(args) as client:
        info, client = _pin(client, out, args.size)
        found = _read(args, info)
        outliers.check_flags(args, info, out, found)
        # The server bounds rows x draws: max_rows * 64.
        most = 64.0 / max(1, args.draws)
        parts = groups.call_each(
            found,
            groups.pieces_of(info, info.shapes_of_x, most, args.contributions),
            lambda x, offset: client.score(
                x,
                draws=args.draws,
                seed=seed,
                offset=offset,
                threshold=args.threshold,
                include_contributions=args.contributions,
            ),
        )
    scores = {
        name: groups.in_order(found, np.concatenate([getattr(part, name) for part in parts]))
        for name in ("elbo", "log_likelihood", "kl")
    }
    scores |= outliers.errors(found, parts) | outliers.columns(found, parts)
    if out is not None and out.kind == "png":
        out.write(
            pictures.render(found, [[group.x for group in found]], outliers.contributions(parts))
        )
    elif out is not None:
        reproduced_by = outputs.provenance(info.served_by, seed=seed, draws=parts[0].draws)
        out.write_arrays(scores | outliers.arrays(info, parts) | reproduced_by)
    terminal.show_table(scores, scores["is_outlier"] if args.outliers_only else None)
    outliers.print_outliers(info, found, parts)
    rows = sum(len(group.x) for group in found)
    what = f"{rows} rows, {parts[0].draws} draws each, in nats"
    terminal.print_result(what, outputs.path_of(out), info.served_by, seed=seed)
    terminal.print_outside_range(
        groups.values_outside_range(
            found, [(part.values_outside_range, len(part.elbo)) for part in parts]
        )
    )
    return 0


def health(args: argparse.Namespace) -> int:
    """Print the server's health; status 0 only if it is SERVING."""
    with _connect(args, healthy_only=False) as client:
        try:
            state = client.health(args.service)
        except ModelNotFound:  # the health service's error for an unknown service
            state = "SERVICE_UNKNOWN"
    print(state)
    return 0 if state == "SERVING" else 1


CALLS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "map": draw_map,
    **{
        call.__name__: call
        for call in (
            *(model, models, encode, decode, sample, stream, reconstruct, interpolate, score),
            health,
        )
    },
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


def _pin(client: Client, out: OutputPath | None = None, size: str = "") -> tuple[ModelInfo, Client]:
    """The model, and a client for exactly its version: one file never has rows of two versions.

    size: the value of --size, the default size of what is returned. Raises InvalidArgument if the
    model does not take it, or `out` cannot store the model's data.
    """
    info = client.get_model()
    if out is not None:
        out.check(info.default.x)
    return sizes.at_size(info, size), client.with_version(info.served_by)


def _read(args: argparse.Namespace, info: ModelInfo) -> list[Group]:
    if args.size and args.fit == "refuse":
        raise InvalidArgument(
            "--size", "files have sizes of their own", "Add --fit resize or --fit crop"
        )
    options = inputs.ReadOptions(args.fit, args.column)
    return inputs.read_rows(args.files, args.rows, info, options)
