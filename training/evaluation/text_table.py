"""An evaluation as text for the terminal: every number with its meaning and its uncertainty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_COLUMNS: Final = 40  # of a table that are shown
_NAME: Final = 20  # characters of a column's name

Line = tuple[str, str, str]  # what, value, remark


def format_table(result: dict[str, Any]) -> str:
    """Format the contents of evaluation.json as lines of text."""
    lines = [
        (name, value, f"  {remark}" if remark else "")
        for part in (_about, _bound, _columns, _texts, _latent, _aggregate, _labels, _samples)
        for name, value, remark in part(result)
    ]
    widest = max(len(value) for _, value, remark in lines if remark)
    return "\n".join(
        f"{name:<22}{value:>{widest}}{remark}" if remark else f"{name:<22}{value}"
        for name, value, remark in lines
    )


def _about(result: dict[str, Any]) -> Iterator[Line]:
    split = result["split"]
    whole = "all" if result["rows"] == split["test"] else "A QUICK LOOK: only the first"
    yield "checkpoint", f"{result['checkpoint']}, epoch {result['epoch']}", ""
    yield "rows", f"{result['data']}, test rows ({split['test_rows']})", ""
    yield "", f"{whole} {result['rows']:,} of {split['test']:,}", ""
    if not result["own_data"]:
        yield "", "NOT the rows or the split this model was trained on", ""
    yield "values", result["values"], ""
    yield "likelihood", result["likelihood"], ""


def _bound(result: dict[str, Any]) -> Iterator[Line]:
    if "bound" in result:
        found, gap = result["bound"], result["gap"]
        yield (
            "-ELBO",
            f"{found['negative_elbo']:.2f}",
            f"± {found['negative_elbo_standard_error']:.2f} nats a row: distortion "
            f"{found['distortion']:.2f} + rate {found['rate']:.2f}",
        )
        yield (
            "NLL",
            f"{found['nll']:.2f}",
            f"± {found['nll_standard_error']:.2f} nats a row, importance-weighted, "
            f"S = {found['samples']:,} ({found['effective_samples']:,.0f} effective)",
        )
        for name, text in (("negative_elbo", "-ELBO"), ("nll", "NLL")):
            yield (
                f"test - train {text}",
                f"{gap[name]:+.2f}",
                f"± {gap[f'{name}_standard_error']:.2f} nats, {gap['test_rows']:,} and "
                f"{gap['train_rows']:,} rows, S = {gap['samples']}",
            )
    if "reconstruction" not in result:
        return
    error = result["reconstruction"]["mean_squared_error"]
    yield "reconstruction", f"{error:.4f}", "mean squared error of a pixel, through the mean"


def _columns(result: dict[str, Any]) -> Iterator[Line]:
    found = result.get("columns", {})
    for number, (name, column) in enumerate(found.items()):
        label = "columns" if number == 0 else ""
        if number == _COLUMNS:
            yield "", f"and {len(found) - _COLUMNS} more", "in evaluation.json"
            return
        if "accuracy" in column:
            yield (
                label,
                name[:_NAME],
                f"{column['accuracy']:.1%} reconstructed; frequencies of samples differ by "
                f"{column['total_variation']:.1%}",
            )
            continue
        r2 = column["r2"]
        share = "no variance" if r2 is None else f"{r2:.1%} of variance explained"
        yield (
            label,
            name[:_NAME],
            f"{share}; {column['mean']:.4g} ± {column['std']:.4g}, samples "
            f"{column['sample_mean']:.4g} ± {column['sample_std']:.4g}",
        )


def _texts(result: dict[str, Any]) -> Iterator[Line]:
    found = result.get("texts")
    if not found:
        return
    rows, decodes = result["rows"], found["decodes"]
    if "nll_per_byte" in found:
        yield (
            "NLL of a byte",
            f"{found['nll_per_byte']:.3f}",
            f"nats ({found['bits_per_byte']:.3f} bits), ends included: {found['bytes'] / rows:.1f} "
            f"bytes a text; the KL is {found['rate_per_byte']:.3f} of it",
        )
        yield "perplexity of a byte", f"{found['perplexity_per_byte']:.2f}", "ends included"
        if found["words"] >= 2 * rows:
            yield (
                "perplexity of a word",
                f"{found['perplexity_per_word']:,.1f}",
                f"{found['words'] / rows:.1f} words a text, and its end",
            )
    yield (
        "reconstruction",
        f"{found['byte_accuracy']:.1%}",
        f"of bytes right, {found['exact_reconstructions']:,} of {rows:,} texts exact, greedy, "
        "through the mean",
    )
    yield (
        "greedy decodes",
        f"{found['distinct_greedy_decodes']:,}",
        f"of {decodes:,} draws of the prior are distinct",
    )
    yield (
        "drawn texts",
        f"{found['distinct_samples']:,}",
        f"of {decodes:,} are distinct, {found['new_samples']:,} are no training rows",
    )


def _samples(result: dict[str, Any]) -> Iterator[Line]:
    found = result.get("texts")
    if not found:
        return
    for number, text in enumerate(found["samples"]):
        yield "drawn from the prior" if number == 0 else "", repr(text)[1:-1], ""
    for texts in found["interpolations"]:
        for number, text in enumerate(texts):
            yield "between two test rows" if number == 0 else "", repr(text)[1:-1], ""


def _latent(result: dict[str, Any]) -> Iterator[Line]:
    latent = result["latent"]
    if "kl" in latent:
        yield (
            "active units",
            f"{latent['active_units']}",
            f"of {latent['size']}: Var E[z|x] > {latent['threshold']}",
        )
    yield "posterior", latent["verdict"], ""


def _aggregate(result: dict[str, Any]) -> Iterator[Line]:
    found = result["aggregate"]
    yield "aggregate |E z|", f"{found['norm_of_mean']:.2f}", "0 for N(0, I)"
    yield "aggregate E |z|", f"{found['mean_norm']:.2f}", "times that of N(0, I)"
    if found["active_variance"] is not None:
        yield "active variance", f"{found['active_variance']:.2f}", "1 for N(0, I)"
    yield (
        "MMD^2",
        f"{found['mmd']:.5f}",
        f"null {found['null_mean']:.5f}, 95% below {found['null_high']:.5f}: {found['verdict']}",
    )
    if found["mutual_information"] is not None:
        yield (
            "I(x; z)",
            f"{found['mutual_information']:.2f}",
            f"nats; from {found['rows']:,} rows, which cannot show more than "
            f"{found['mutual_information_limit']:.2f}",
        )


def _labels(result: dict[str, Any]) -> Iterator[Line]:
    probe, frechet = result["probe"], result["frechet"]
    if "missing" in probe:
        yield "linear probe", f"not measured: {probe['missing']}", ""
    else:
        yield (
            "linear probe",
            f"{probe['accuracy']:.1%}",
            f"of {probe['test_rows']:,} test rows, {probe['classes']} classes, from the mean",
        )
    if "missing" in frechet:
        yield "Frechet distance", f"not measured: {frechet['missing']}", ""
        return
    remark = f"{frechet['samples']:,} decoded draws from N(0, I)"
    yield "Frechet distance", f"{frechet['prior']:.2f}", remark
    yield "", f"{frechet['fitted']:.2f}", "draws from a Gaussian fitted to the codes instead"
    yield (
        "",
        f"{frechet['training_rows']:.2f}",
        f"real training rows: the floor (classifier right on {frechet['classifier_accuracy']:.1%})",
    )
