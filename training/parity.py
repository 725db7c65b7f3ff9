"""Parity: compares the graphs with PyTorch on real rows, at several batch sizes, and with spatial
latents at several sizes of x."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from latentd import tables
from latentd.decoding import GREEDY
from latentd.training.array import Array
from latentd.training.dataset import Dataset, max_batch_rows
from latentd.training.errors import RunFailed
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.model import (
    AE,
    Model,
    decoder_rows,
    gaussian_kl,
    log_likelihood,
    to_data,
    to_unit,
)
from latentd.training.onnx_session import cpu_session
from latentd.training.tolerances import TOLERANCES, Tolerance

DENSITY_TOLERANCE: Final = 1e-5
"""Of log p(x|z), as a part of the sum of its terms' sizes, but at least of one nat. A density has
terms of both signs, so their sum may be near 0. The graph's params are PyTorch's."""
ROWS: Final = 1000
_VALUES: Final = 1 << 26  # of all rows together: images beyond 128x128 in color are fewer
_BATCHES: Final = (1, 2, 3, ROWS)  # the last is smaller for large images
_SURE: Final = 1e-5  # a level drawn by a number this near to another's may differ
_AT_OTHER_SIZES: Final = (1, 2)  # the batches there; the largest of them is the number of rows

Size = tuple[int, int]
"""Height and width of x."""


def rows(dataset: Dataset) -> tuple[Tensor, dict[str, int]]:
    """Up to ROWS real rows, test rows first, and the numbers of rows and test rows. Leaves out test
    rows outside the range, because a server rejects them. Large images are fewer, to bound memory.
    """
    limit = min(ROWS, max(1, _VALUES // dataset.spec.size))
    test = dataset.test.x
    if test.is_floating_point() and not dataset.columns:
        values = test.flatten(1)
        test = test[((values >= 0) & (values <= dataset.spec.highest)).all(1)]
    test = test[:limit]
    # Only the first rows of each part: all of them may be larger than the memory.
    more = torch.cat((dataset.validation.x[:limit], dataset.train.x[:limit]))
    more = more[: limit - len(test)]
    return torch.cat((test, more)), {"rows": len(test) + len(more), "test_rows": len(test)}


def batch_sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The batch sizes to compare at, for rows of this shape."""
    return (*_BATCHES[:-1], max_batch_rows(shape, _BATCHES[-1]))


def at_size(x: Tensor, size: Size) -> Tensor:
    """Rows (rows, *shape) repeated downwards and to the right, and cut to another size."""
    height, width = size
    down, across = -(-height // x.shape[1]), -(-width // x.shape[2])
    repeated = x.repeat(1, down, across, *[1] * (x.ndim - 3))
    return repeated[:, :height, :width].contiguous()


def measure(
    model: Model,
    encoder: bytes,
    decoder: bytes,
    x: Tensor,
    precision: str = "float32",
    sizes: Sequence[Size] = (),
) -> dict[str, Any]:
    """The largest differences between ONNX Runtime and PyTorch eager, over x (rows, *shape), for
    each of `batch_sizes`. Raises RunFailed at the first tensor beyond its precision's tolerance.

    sizes: other sizes of x, compared with fewer rows and smaller batches.
    """
    tolerance, sessions = TOLERANCES[precision], (session(encoder), session(decoder))
    batches = batch_sizes(tuple(x.shape[1:]))
    errors, delta_elbo = _measure(model, *sessions, x, batches, tolerance)
    few = x[: max(_AT_OTHER_SIZES)]
    tensors_only = tolerance._replace(delta_elbo=math.inf)  # few rows have no stable mean
    for size in sizes:
        more, _ = _measure(model, *sessions, at_size(few, size), _AT_OTHER_SIZES, tensors_only)
        errors = {name: max(error, more[name]) for name, error in errors.items()}
    return {
        "batches": list(batches),
        **({"other_sizes": [list(size) for size in sizes]} if sizes else {}),
        "atol": tolerance.atol,
        "rtol": tolerance.rtol,
        "max_abs_difference": errors,
        "delta_elbo_nats": delta_elbo,
    }


@torch.no_grad()
def _measure(
    model: Model,
    encode: ort.InferenceSession,
    decode: ort.InferenceSession,
    x: Tensor,
    batches: Sequence[int],
    tolerance: Tolerance,
) -> tuple[dict[str, float], float]:
    """The largest difference of each output, and of the ELBO. Both decoders get the same z, so that
    the decoder is measured separately."""
    encoded = [model.encode(part) for part in torch.split(x, max(batches))]
    mean, log_var = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    z = mean + (0.5 * log_var).exp() * torch.randn(
        mean.shape, generator=torch.Generator().manual_seed(0)
    )
    params = torch.cat([model.decode(part) for part in torch.split(z, max(batches))])
    outputs = _Comparison(model, params)
    eager = {"mean": mean, "log_var": log_var, "params": params, "x": outputs.decoded}
    if isinstance(model, AE):
        del eager["log_var"]
    elbo = _elbo(model, x, eager)
    max_errors, max_elbo_error = dict.fromkeys(eager, 0.0), 0.0
    allowed = tolerance.delta_elbo * max(1.0, x[0].numel() / 1000) + outputs.slack.sum()
    inputs = decoder_rows(model, z, outputs.choices)
    for batch in batches:
        onnx = run(encode, x, batch) | run(decode, inputs, batch)
        for name, expected in eager.items():
            found, wanted = onnx[name], expected.numpy()
            if model.spec.columns and name in ("x", "params"):
                found, wanted = outputs.comparable(name, found), outputs.comparable(name, wanted)
            slack = outputs.slack if name in ("x", "params") else 0.0
            error = compare(name, found, wanted, batch, tolerance, slack)
            max_errors[name] = max(max_errors[name], error)
        tensors = {name: torch.from_numpy(array) for name, array in onnx.items()}
        delta = abs(float((_elbo(model, x, tensors) - elbo).mean()))
        if not delta <= allowed:
            raise RunFailed(
                f"Parity failed: at batch {batch} the ELBO moved by {delta:.2e} nats; "
                f"{allowed:.2e} is allowed. Nothing was published."
            )
        max_elbo_error = max(max_elbo_error, delta)
    return max_errors, max_elbo_error


class _Comparison:
    """How the decoder's outputs of a model are compared: as they are, or of rows with columns in
    units of each column's standard deviation, where rounding decides no level.

    choices: the decoder's input after z; None: it takes none. decoded: x. slack: of each column,
    the rounding of its numbers in these units
    """

    def __init__(self, model: Model, params: Tensor) -> None:
        self._columns = model.spec.columns
        self.choices: Tensor | None = None
        self.decoded, self.slack = to_data(model, params), np.zeros(1)
        if isinstance(model.likelihood, MixedLikelihood):
            generator = torch.Generator().manual_seed(1)
            choices = torch.rand((len(params), len(self._columns)), generator=generator)
            choices[::2] = GREEDY
            self.choices = choices = choices.clamp(max=1 - 1e-6)
            self.decoded = model.likelihood.draw(params, choices)
            self._sure = (model.likelihood.margin(params, choices) >= _SURE).numpy()
            self.slack = tables.rounding(self._columns)

    def comparable(self, name: str, values: Array) -> Array:
        """x without unsure levels, or params."""
        found = tables.standardized(self._columns, values)
        return np.where(self._sure, found, 0) if name == "x" else found


def _elbo(model: Model, x: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """The ELBO (rows,) in nats. It is float64 so that the comparison adds no rounding."""
    log_p = log_likelihood(model, x, outputs["params"])
    if isinstance(model, AE):  # it has no KL
        return log_p
    return log_p - gaussian_kl(outputs["mean"].double(), outputs["log_var"].double())


@torch.no_grad()
def measure_likelihood(
    model: Model, likelihood: bytes, x: Tensor, sizes: Sequence[Size] = ()
) -> float:
    """The largest difference of log p(x|z) between ONNX Runtime and PyTorch, over x (rows, *shape)
    decoded from their means. Raises RunFailed beyond DENSITY_TOLERANCE.

    sizes: other sizes of x, compared with fewer rows.
    """
    density, largest, few = session(likelihood), 0.0, x[: max(_AT_OTHER_SIZES)]
    parts = torch.split(x, max_batch_rows(x.shape[1:], ROWS))
    for rows in (*parts, *(at_size(few, size) for size in sizes)):
        params = model.decode(model.encode(rows)[0])
        terms = model.likelihood.terms(to_unit(rows).double(), params.double()).flatten(1)
        expected, scale = -terms.sum(1).numpy(), terms.abs().sum(1).numpy()
        log_p, _ = log_likelihood_of(density, rows, params)
        difference = np.abs(log_p - expected)
        if not (difference <= DENSITY_TOLERANCE * np.maximum(1, scale)).all():
            raise RunFailed(
                f"Parity failed: log_likelihood of x {tuple(rows.shape[1:])} from ONNX Runtime "
                f"differs from PyTorch's by up to {difference.max():.2e} nats. Nothing was "
                "published."
            )
        largest = max(largest, float(difference.max()))
    return largest


def session(graph: bytes) -> ort.InferenceSession:
    """A session for a graph on the CPU, with as many threads as torch uses."""
    return cpu_session(graph, torch.get_num_threads())


def log_likelihood_of(
    session: ort.InferenceSession, x: Tensor, params: Tensor
) -> tuple[Array, Array]:
    """likelihood.onnx on rows and their params: log_likelihood (rows,), contributions."""
    outputs = ["log_likelihood", "contributions"]
    log_p, terms = session.run(outputs, {"x": x.numpy(), "params": params.numpy()})
    return log_p, terms


def run(session: ort.InferenceSession, rows: Tensor, batch: int) -> dict[str, Array]:
    """Run the graph on `rows`, `batch` rows at a time. Returns every output."""
    input_name = session.get_inputs()[0].name
    output_names = [output.name for output in session.get_outputs()]
    parts = [
        session.run(output_names, {input_name: part.numpy()}) for part in torch.split(rows, batch)
    ]
    return dict(zip(output_names, map(np.concatenate, zip(*parts, strict=True)), strict=True))


def compare(
    name: str,
    actual: Array,
    expected: Array,
    batch: int,
    tolerance: Tolerance,
    slack: Array | float = 0.0,
) -> float:
    """The largest difference of an output. Raises RunFailed beyond the tolerance and the slack."""
    # The terms of a sum decide its rounding error, even if they cancel to almost nothing.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    allowed = (
        tolerance.levels
        if expected.dtype == np.uint8
        else tolerance.atol * scale + tolerance.rtol * np.abs(expected) + slack
    )
    if actual.dtype != expected.dtype or not (difference <= allowed).all():
        raise RunFailed(
            f"Parity failed: at batch {batch}, {name} {expected.shape[1:]} from ONNX Runtime "
            f"differs from PyTorch's by up to {difference.max():.2e}. Nothing was published."
        )
    return float(difference.max())
