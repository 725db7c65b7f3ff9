"""The graphs of log p(x|z) compute its definition, and those of format 1 are up to date."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from latentd.training import format_1, onnx_graphs
from latentd.training.config import Config
from latentd.training.likelihoods import LIKELIHOODS

ROOT = Path(__file__).resolve().parents[2]
FORMAT_1 = ROOT / "serving" / "models" / "format_1"

CASES = [
    ("bernoulli", (784,), "float32"),
    ("bernoulli", (28, 28), "uint8"),
    ("gaussian", (28, 28), "float32"),
    ("gaussian", (64, 64, 3), "uint8"),
    ("discretized-logistic", (64, 64, 3), "uint8"),
]


@functools.cache
def graph_of(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    likelihood = LIKELIHOODS[name](Config(likelihood=name))
    spec = SimpleNamespace(shape=shape, dtype=dtype)
    model: Any = SimpleNamespace(spec=spec, likelihood=likelihood, latent_shape=(1,), stride=None)
    return onnx_graphs.likelihood(model, "m")


def run(graph: bytes, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (output,) = session.run(["log_likelihood"], {"x": x, "params": params})
    return output


def defined(name: str, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    """log p(x|z) by its definition, in float64: x scaled to [0, 1] in float32, as training does."""
    unit = x / np.float32(255) if x.dtype == np.uint8 else x
    unit, params = unit.astype(np.float64), params.astype(np.float64)
    with np.errstate(all="ignore"):
        return terms(name, unit, params).reshape(len(x), -1).sum(axis=1)


def terms(name: str, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    if name == "bernoulli":
        return x * params[:, 0] - np.logaddexp(0, params[:, 0])
    mean, log_width = params[:, 0], params[:, 1]
    if name == "gaussian":
        squares = np.square((x - mean) * np.exp(-log_width))
        return -0.5 * (squares + np.log(2 * np.pi)) - log_width
    sharpness = np.exp(-log_width)
    above, below = (x - mean + 1 / 510) * sharpness, (x - mean - 1 / 510) * sharpness
    to_upper, from_lower = -np.logaddexp(0, -above), -np.logaddexp(0, below)
    inside = to_upper + from_lower + np.log(-np.expm1(-sharpness / 255))
    return np.where(x == 0, to_upper, np.where(x == 1, from_lower, inside))


def rows_of_a_trained_model(
    name: str, shape: tuple[int, ...], dtype: str, rows: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """x drawn from params such as training gives."""
    rng = np.random.default_rng(1)
    size = (rows, *shape)
    mean = rng.random(size)
    if name == "bernoulli":
        logits = np.where(rng.random(size) < 0.8, rng.normal(-8, 2, size), rng.normal(2, 2, size))
        x = (rng.random(size) < 1 / (1 + np.exp(-logits))) * rng.beta(5, 1, size)
        params = logits[:, None]
    else:
        gaussian = name == "gaussian"
        log_width = rng.normal(-1.2, 0.1, size) if gaussian else rng.normal(-3.5, 0.7, size)
        noise = rng.normal(size=size) if gaussian else rng.logistic(size=size)
        x = (mean + np.exp(log_width) * noise).clip(0, 1)
        params = np.stack((mean, log_width), axis=1)
    return np.rint(255 * x).astype(np.uint8) if dtype == "uint8" else x.astype(dtype), (
        params.astype(np.float32)
    )


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_graph_computes_the_definition(name: str, shape: tuple[int, ...], dtype: str) -> None:
    x, params = rows_of_a_trained_model(name, shape, dtype)
    found = run(graph_of(name, shape, dtype), x, params)
    assert found.dtype == np.float64
    # Of 12288 float32 terms; a sum in float32 misses ten times as much.
    allowed = 1e-4 if len(shape) < 3 else 3e-4
    np.testing.assert_allclose(found, defined(name, x, params), rtol=0, atol=allowed)


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_contributions_are_the_terms_of_the_sum(
    name: str, shape: tuple[int, ...], dtype: str
) -> None:
    x, params = rows_of_a_trained_model(name, shape, dtype)
    graph = graph_of(name, shape, dtype)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    log_p, found = session.run(["log_likelihood", "contributions"], {"x": x, "params": params})
    assert (found.dtype, found.shape) == (np.float32, x.shape)
    np.testing.assert_allclose(found.reshape(len(x), -1).sum(1, dtype=np.float64), -log_p)
    unit = (x / np.float32(255) if x.dtype == np.uint8 else x).astype(np.float64)
    with np.errstate(all="ignore"):
        expected = -terms(name, unit, params.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert onnx_graphs.dims_of_contributions(graph) == list(shape)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_graph_stays_finite_where_the_definition_does(name: str) -> None:
    x = np.array([0, 1, 128, 254, 255], np.uint8)
    ends = [0.0, 0.4, 1.0, 20.0, 50.0, 80.0, 200.0, 1e4, 1e9]
    values = np.array([*ends, *(-end for end in ends)], np.float32)
    widths = values[abs(values) <= 80]  # exp of more is no float32
    count = len(LIKELIHOODS[name](Config()).parameters)
    grid = np.array(np.meshgrid(*(values, widths)[:count])).reshape(count, -1).T
    graph = graph_of(name, (1,), "uint8")
    for byte in x:
        rows = np.full((len(grid), 1), byte)
        found, wanted = run(graph, rows, grid[..., None]), defined(name, rows, grid[..., None])
        finite = np.isfinite(wanted) & (np.abs(wanted) < 1e30)  # float32 ends at 3e38
        np.testing.assert_allclose(found[finite], wanted[finite], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_params_that_are_no_numbers_give_no_number(name: str) -> None:
    x, params = rows_of_a_trained_model(name, (28, 28), "uint8")
    for parameter in range(params.shape[1]):
        broken = params.copy()
        broken[3, parameter, 5, 6] = np.nan
        found = run(graph_of(name, (28, 28), "uint8"), x, broken)
        assert np.isnan(found).tolist() == [row == 3 for row in range(len(x))]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_row_has_the_same_density_in_any_batch(name: str) -> None:
    x, params = rows_of_a_trained_model(name, (28, 28), "uint8", rows=40)
    graph = graph_of(name, (28, 28), "uint8")
    whole = run(graph, x, params)
    for rows in (1, 3, 16):
        parts = [run(graph, x[i : i + rows], params[i : i + rows]) for i in range(0, 40, rows)]
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_graph_tells_nothing_of_the_source() -> None:
    graph = graph_of("discretized-logistic", (28, 28), "uint8")
    assert b"terms" not in graph
    assert str(ROOT).encode() not in graph
    assert len(graph) < 10_000  # it has no weights


@functools.cache
def new_graph_for_format_1(name: str) -> bytes:
    return format_1.graph(name)


@pytest.mark.parametrize("name", format_1.NAMES)
@pytest.mark.parametrize("size", [1, 3, 784])
def test_graph_for_format_1_is_up_to_date(name: str, size: int) -> None:
    x, params = rows_of_a_trained_model(name, (size,), "uint8")
    unit = x / np.float32(255)
    kept = run((FORMAT_1 / f"{name}.onnx").read_bytes(), unit, params)
    again = run(new_graph_for_format_1(name), unit, params)
    assert kept.tolist() == again.tolist(), "run `make likelihoods`"
    np.testing.assert_allclose(kept, defined(name, x, params), rtol=0, atol=1e-4)
