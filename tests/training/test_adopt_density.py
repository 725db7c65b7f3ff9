"""The graphs of likelihoods that a card names, against scipy's densities. No net is needed."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from scipy import stats

from latentd.bundle import RowFormat
from latentd.shapes import Shape
from latentd.training.adopt.density import Density

SHAPES = {"uint8": ["h", "w", 3], "float32": [12]}


def run(density: Density, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    kind = "image" if x.dtype == np.uint8 else "vector"
    form = RowFormat(kind, Shape.parse(SHAPES[str(x.dtype)]), str(x.dtype))
    session = ort.InferenceSession(density.graph(form), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(["log_likelihood"], {"x": x, "params": params})[0]
    assert output.dtype == np.float64
    return output


def rows(dtype: str) -> np.ndarray:
    shape, random = (5, 7, 4, 3) if dtype == "uint8" else (5, 12), np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide / 255 if x.dtype == np.uint8 else wide


def sums(terms: np.ndarray) -> np.ndarray:
    result: np.ndarray = terms.reshape(len(terms), -1).sum(axis=1)
    return result


@pytest.mark.parametrize("dtype", SHAPES)
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_density_with_a_width(name: str, dtype: str) -> None:
    x, random = rows(dtype), np.random.default_rng(1)
    mean, log_width = random.normal(0.5, 0.3, x.shape), random.normal(-2, 1, x.shape)
    params = np.stack([mean, log_width], axis=1).astype(np.float32)
    of = {"gaussian": stats.norm, "laplace": stats.laplace}[name]
    expected = sums(of.logpdf(unit(x), params[:, 0], np.exp(params[:, 1].astype(float))))
    np.testing.assert_allclose(run(Density(name), x, params), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", SHAPES)
@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_bernoulli(form: str, dtype: str) -> None:
    """Of black and white it is a probability; between them the cross-entropy, which is linear."""
    x, random = rows(dtype), np.random.default_rng(1)
    logits = random.normal(0, 4, x.shape)
    p = 1 / (1 + np.exp(-logits))
    white, black = stats.bernoulli.logpmf(1, p), stats.bernoulli.logpmf(0, p)
    expected = sums(unit(x) * white + (1 - unit(x)) * black)
    params = (logits if form == "logits" else p)[:, None].astype(np.float32)
    found = run(Density("bernoulli", form), x, params)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_certain_probabilities_cost_no_more_than_in_torch() -> None:
    x = np.array([[0.0] * 12, [1.0] * 12], np.float32)
    params = np.zeros((2, 1, 12), np.float32)
    assert run(Density("bernoulli", "probabilities"), x, params).tolist() == [0, -1200]


@pytest.mark.parametrize(
    "density",
    [Density("bernoulli", "logits"), Density("bernoulli", "probabilities"), Density("gaussian")],
)
def test_params_that_are_no_numbers_give_no_number(density: Density) -> None:
    x = rows("float32")
    params = np.full((5, len(density.likelihood.parameters), 12), 0.5, np.float32)
    params[3, 0, 7] = np.nan
    assert np.isnan(run(density, x, params)).tolist() == [row == 3 for row in range(5)]
