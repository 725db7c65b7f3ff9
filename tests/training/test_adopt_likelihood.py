"""A card's likelihood, in graphs made by hand: what is refused, and what the bundle computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images

from latentd import bundle
from latentd.client import Client, DataPoint
from latentd.errors import InvalidArgument
from latentd.shapes import Shape
from latentd.training.adopt import adopt, sources
from latentd.training.errors import TrainingError
from tests.support.foreign_graphs import byte_pair, kl_pair, vector_pair
from tests.support.server import StartServer

LOG_VAR = -9.0  # about the error of the reconstructions
GAUSSIAN = {"name": "gaussian", "std": 0.5}
CARD: dict[str, Any] = {
    "range": [-1.0, 1.0],
    "scale": 1.0,
    "shift": 0.0,
    "prior": "standard-normal",
    "license": "MIT",
    "source": "a test",
    "sizes": {"h": 16, "w": 24},
}


def with_tail(pair: tuple[Path, Path], ops: list[onnx.NodeProto], **constants: Any) -> None:
    """Append nodes to the decoder: they take "decoded" and give "sample", and perhaps "width"."""
    model = onnx.load(pair[1])
    model.graph.node[-1].output[0] = "decoded"
    model.graph.node.extend(ops)
    model.graph.initializer.extend(
        from_array(np.asarray(value, np.float32), name) for name, value in constants.items()
    )
    if any("width" in node.output for node in ops):
        model.graph.output.append(
            helper.make_tensor_value_info("width", TensorProto.FLOAT, ["n", 3, "h", "w"])
        )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    onnx.save(model, pair[1])


def width(*, joined: bool = False, first: bool = False) -> list[onnx.NodeProto]:
    """Nodes that give a log-variance beside the mean, as a tensor or as channels."""
    ops = [
        helper.make_node("Mul", ["decoded", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "log_var"], ["log_vars" if joined else "width"]),
    ]
    if joined:
        both = ["log_vars", "decoded"] if first else ["decoded", "log_vars"]
        return [*ops, helper.make_node("Concat", both, ["sample"], axis=1)]
    return [*ops, helper.make_node("Identity", ["decoded"], ["sample"])]


def photographs(count: int = 4) -> np.ndarray:
    picture = load_sample_images().images[1]
    return np.stack([picture[50 * i : 50 * i + 16, 90:114] for i in range(count)])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, row in enumerate(photographs(8)):
        Image.fromarray(row).save(folder / f"{number}.png")
    return folder


def run(graph: bytes, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def published(
    pair: tuple[Path, Path], card: Mapping[str, Any], root: Path, **more: Any
) -> bundle.Bundle:
    folder = adopt(sources.onnx(*pair), card, root / "models", "m", report=print, **more)
    return bundle.load(folder)


def refuse(
    words: str, pair: tuple[Path, Path], card: Mapping[str, Any], root: Path, **more: Any
) -> None:
    with pytest.raises(TrainingError, match=words):
        published(pair, card, root, **more)
    assert not (root / "models").exists()


@pytest.mark.parametrize("form", ["fixed", "a tensor", "channels", "BGR"])
def test_gaussian_is_of_pixels_from_0_to_1(tmp_path: Path, form: str) -> None:
    pair = kl_pair(tmp_path)
    card = CARD | {"likelihood": {"name": "gaussian", "std": "log_var"}}
    if form == "fixed":
        card["likelihood"] = {"name": "gaussian", "std": float(np.exp(LOG_VAR / 2))}
    elif form == "channels":
        with_tail(pair, width(joined=True), zero=0, log_var=LOG_VAR)
    else:
        # each color has another width
        log_var = np.array([LOG_VAR, LOG_VAR - 1, LOG_VAR + 1])[:, None, None]
        with_tail(pair, width(), zero=0, log_var=log_var)
        card["tensors"] = {"decoded_x": "sample", "decoded_width": "width"}
    if form == "BGR":
        normalized = {"mean": [0.3, 0.4, 0.5], "std": [0.5, 0.6, 0.7], "color_order": "BGR"}
        card = {key: value for key, value in card.items() if key != "range"} | normalized
    files = published(pair, card, tmp_path)
    assert files.manifest.likelihood == bundle.Likelihood(
        "gaussian", ("mean", "log_std"), bounded=False, contributions=files.manifest.x.shape
    )
    x = photographs()
    z = run(files.files[bundle.ENCODER], x=x)["mean"]
    params = run(files.files[bundle.DECODER], z=z)["params"]
    found = run(files.files[bundle.LIKELIHOOD], x=x, params=params)["log_likelihood"]
    decoder = ort.InferenceSession(pair[1], providers=["CPUExecutionProvider"])
    net, *widths = decoder.run(None, {"latent_sample": z})
    if form == "channels":
        net, widths = net[:, :3], [net[:, 3:]]
    std = np.exp((widths[0] if widths else np.full_like(net, LOG_VAR)).astype(float) / 2)
    pixels, high_minus_low = x.transpose(0, 3, 1, 2) / 255, np.full((3, 1, 1), 2.0)
    owners = pixels * 2 - 1
    if form == "BGR":
        mean, deviation = (np.array(card[key])[:, None, None] for key in ("mean", "std"))
        owners, high_minus_low = (pixels[:, ::-1] - mean) / deviation, 1 / deviation
    terms = stats.norm.logpdf(owners, net, std) + np.log(high_minus_low)
    np.testing.assert_allclose(found, terms.sum((1, 2, 3)), rtol=1e-5)


def test_scores_of_images_of_any_size(tmp_path: Path, start_server: StartServer) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, width(), zero=0, log_var=LOG_VAR)
    sizes = {name: {"min": 16, "max": 128, "default": 64} for name in "hw"}
    published(pair, learned() | {"sizes": sizes, "clip_log_var": [-6.0, 7.0]}, tmp_path)
    server = start_server(tmp_path / "models")
    decoder = ort.InferenceSession(pair[1], providers=["CPUExecutionProvider"])
    with Client(server.target) as client:
        for x in (photographs(2), np.repeat(np.repeat(photographs(2), 4, axis=1), 5, axis=2)):
            found = client.reconstruct(x, include_scores=True)
            net, log_var = decoder.run(None, {"latent_sample": client.encode(x).mean})
            owners, std = x.transpose(0, 3, 1, 2) / 127.5 - 1, np.exp(log_var.astype(float) / 2)
            log_p = (stats.norm.logpdf(owners, net, std) + np.log(2)).sum((1, 2, 3))
            np.testing.assert_allclose(-found.reconstruction_error, log_p, rtol=1e-4)
            assert (client.score(x, draws=2, seed=0).elbo < log_p).all()


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({"likelihood": "none"}, "defines no likelihood"),
        ({"prior": "none"}, "has no prior, so it defines no bound on log p(x)"),
    ],
)
def test_what_a_model_lacks_is_told(
    tmp_path: Path, start_server: StartServer, changes: dict[str, Any], score: str
) -> None:
    published(kl_pair(tmp_path), CARD | {"likelihood": GAUSSIAN} | changes, tmp_path)
    with Client(start_server(tmp_path / "models").target) as client:
        assert client.get_model().unavailable["score"] == score
        with pytest.raises(InvalidArgument, match=re.escape(score)):
            client.score(photographs())
        assert ("sample" in client.get_model().unavailable) is ("prior" in changes)
        path = client.interpolate(*map(DataPoint, photographs(2)), steps=3)
        assert path.x.shape == (3, 16, 24, 3)


def test_laplace(tmp_path: Path) -> None:
    pair = kl_pair(tmp_path)
    card = CARD | {"likelihood": {"name": "laplace", "scale": 0.3}}
    files = published(pair, card, tmp_path)
    x = photographs()
    z = run(files.files[bundle.ENCODER], x=x)["mean"]
    params = run(files.files[bundle.DECODER], z=z)["params"]
    found = run(files.files[bundle.LIKELIHOOD], x=x, params=params)["log_likelihood"]
    decoder = ort.InferenceSession(pair[1], providers=["CPUExecutionProvider"])
    (net,) = decoder.run(None, {"latent_sample": z})
    owners = x.transpose(0, 3, 1, 2) / 127.5 - 1
    terms = stats.laplace.logpdf(owners, net, 0.3) + np.log(2)
    np.testing.assert_allclose(found, terms.sum((1, 2, 3)), rtol=1e-5)


def logits() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Sub", ["decoded", "middle"], ["centered"]),
        helper.make_node("Mul", ["centered", "contrast"], ["sample"]),
    ]


def probabilities() -> list[onnx.NodeProto]:
    return [helper.make_node("Clip", ["decoded", "zero", "one"], ["sample"])]


def bernoulli(form: str) -> dict[str, Any]:
    return CARD | {"range": [0.0, 1.0], "likelihood": {"name": "bernoulli", "decoded_x": form}}


def test_logits_are_probabilities_of_white(tmp_path: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, logits(), middle=0.5, contrast=5)
    files = published(pair, bernoulli("logits"), tmp_path)
    assert files.manifest.likelihood == bundle.Likelihood(
        "bernoulli", ("logit",), binary=True, contributions=files.manifest.x.shape
    )
    x = photographs()
    z = run(files.files[bundle.ENCODER], x=x)["mean"]
    decoded = run(files.files[bundle.DECODER], z=z)
    expected = np.rint(255 / (1 + np.exp(-decoded["params"][:, 0])))
    assert np.abs(decoded["x"] - expected).max() <= 1
    decoder = ort.InferenceSession(pair[1], providers=["CPUExecutionProvider"])
    (net,) = decoder.run(None, {"latent_sample": z})
    np.testing.assert_allclose(decoded["params"][:, 0], net.transpose(0, 2, 3, 1), atol=1e-4)


def test_vectors_of_probabilities_are_from_0_to_1(tmp_path: Path) -> None:
    pair = vector_pair(tmp_path)
    model = onnx.load(pair[1])
    model.graph.node[-1].output[0] = "decoded"
    model.graph.node.append(helper.make_node("Sigmoid", ["decoded"], ["x"]))
    onnx.save(model, pair[1])
    card = {key: value for key, value in CARD.items() if key not in ("range", "sizes")}
    likelihood = {"name": "bernoulli", "decoded_x": "probabilities"}
    files = published(pair, card | {"likelihood": likelihood}, tmp_path)
    assert files.manifest.x.range == (0, 1)
    assert files.manifest.likelihood == bundle.Likelihood(
        "bernoulli", ("probability",), binary=True, contributions=Shape.parse([6])
    )


def test_logits_that_are_called_probabilities(tmp_path: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, logits(), middle=0.5, contrast=5)
    words = r'gives -\d\S* to \d\S*, which the card calls probabilities; .* decoded_x = "logits"'
    refuse(words, pair, bernoulli("probabilities"), tmp_path)


def test_probabilities_that_are_called_logits(tmp_path: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, probabilities(), zero=0, one=1)
    words = r'gives \S+ to \S+ only, which the card calls logits; .* decoded_x = "probabilities"'
    refuse(words, pair, bernoulli("logits"), tmp_path)


def learned(std: str = "log_var", **tensors: str) -> dict[str, Any]:
    tensors = tensors or {"decoded_x": "sample", "decoded_width": "width"}
    return CARD | {"likelihood": {"name": "gaussian", "std": std}, "tensors": tensors}


def test_mean_and_width_that_are_exchanged(tmp_path: Path, pictures: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, width(), zero=0, log_var=LOG_VAR)
    card = learned(decoded_x="width", decoded_width="sample")
    refuse("likelier, by .*: what is called the mean is", pair, card, tmp_path, images=pictures)


def test_log_std_that_is_a_log_var(tmp_path: Path, pictures: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, width(), zero=0, log_var=LOG_VAR)
    refuse('Correct the card: std = "log_var"', pair, learned("log_std"), tmp_path, images=pictures)


def test_decoder_of_another_model(tmp_path: Path, pictures: Path) -> None:
    """It gives negatives."""
    pair = kl_pair(tmp_path)
    with_tail(pair, [helper.make_node("Neg", ["decoded"], ["sample"])])
    card = CARD | {"likelihood": {"name": "gaussian", "std": 0.5}}
    words = "likelier with the latents of other rows than with their own, by"
    refuse(words, pair, card, tmp_path, images=pictures)


def test_width_that_is_missing(tmp_path: Path) -> None:
    card = CARD | {"likelihood": {"name": "gaussian", "std": "log_var"}}
    words = "gives 3 channels; expected an even number, for the mean and the log_var"
    refuse(words, kl_pair(tmp_path), card, tmp_path)


def test_width_that_nothing_needs(tmp_path: Path) -> None:
    pair = kl_pair(tmp_path)
    with_tail(pair, width(), zero=0, log_var=LOG_VAR)
    fixed = learned() | {"likelihood": {"name": "gaussian", "std": 0.1}}
    refuse("has tensors.decoded_width, but its likelihood needs none", pair, fixed, tmp_path)


def test_probabilities_need_a_range_from_0_to_1(tmp_path: Path) -> None:
    card = bernoulli("logits") | {"range": [-1.0, 1.0]}
    refuse(r"of images, whose range is \[0, 1\]", kl_pair(tmp_path), card, tmp_path)


def test_decoder_of_bytes_has_no_likelihood(tmp_path: Path) -> None:
    card = {key: value for key, value in CARD.items() if key not in ("range", "sizes")}
    card |= {"z_layout": "NHWC", "likelihood": {"name": "gaussian", "std": 0.1}}
    refuse("gives bytes, which are rounded", byte_pair(tmp_path), card, tmp_path)


def rows_file(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "rows.npy", rows)
    return folder / "rows.npy"


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(5, 2, (count, 6)).astype(np.float32)


VECTORS = {key: value for key, value in CARD.items() if key not in ("range", "sizes")} | {
    "mean": 5.0,
    "std": 2.0,
    "likelihood": {"name": "gaussian", "std": 0.5},
}


@pytest.mark.parametrize(
    ("changes", "count", "words"),
    [
        ({}, 300, "of 300 rows"),
        ({}, 99, "none, as 99 rows are too few; --rows with 100 or more gives them"),
        ({}, 0, "none, as no real rows were named; --rows does"),
        ({"prior": "none"}, 300, r"none, as the model has no prior, so it defines no bound"),
        ({"likelihood": "none"}, 300, "none, as the model defines no likelihood"),
    ],
)
def test_percentiles_of_scores(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    count: int,
    words: str,
) -> None:
    rows = rows_file(tmp_path, vectors(count)) if count else None
    files = published(vector_pair(tmp_path), VECTORS | changes, tmp_path, rows=rows)
    assert f"percentiles of scores: {words}" in capsys.readouterr().out
    scores = files.manifest.training_scores
    assert bool(scores) is words.startswith("of")
    if not scores:
        return
    x = vectors(count)
    z = run(files.files[bundle.ENCODER], x=x)
    params = run(files.files[bundle.DECODER], z=z["mean"])["params"]
    # A std of 0.5 of the net is 1 of x.
    error = -stats.norm.logpdf(x, params[:, 0], 1).sum(axis=1)
    kl = 0.5 * (z["mean"] ** 2 + np.exp(z["log_var"]) - 1 - z["log_var"]).sum(axis=1)
    for name, values in {"reconstruction_error": error, "kl": kl, "elbo": -error - kl}.items():
        np.testing.assert_allclose(
            scores[name], np.percentile(values, scores["levels"]), rtol=1e-4, atol=1e-4
        )


def test_threshold_is_of_the_rows(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, vectors(300))
    files = published(vector_pair(tmp_path), VECTORS, tmp_path, rows=rows, threshold_percentile=90)
    scores, chosen = files.manifest.training_scores, files.manifest.threshold
    assert chosen == bundle.Threshold(
        90, scores["reconstruction_error"][scores["levels"].index(90)]
    )


def test_threshold_needs_rows(tmp_path: Path) -> None:
    words = "--threshold-percentile needs percentiles of scores: none, as no real rows were named"
    refuse(words, vector_pair(tmp_path), VECTORS, tmp_path, threshold_percentile=90)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            np.zeros((9, 5), np.float32),
            r"has rows float32 \[5\]; expected float32 \[6\], as client",
        ),
        (np.zeros((9, 6), np.uint8), r"has rows uint8 \[6\]; expected float32 \[6\]"),
        (np.zeros((1, 6), np.float32), "has 1 rows; expected 2 or more"),
        (np.full((9, 6), np.nan, np.float32), "row 0 has NaN, infinity or a value outside"),
    ],
)
def test_wrong_rows(tmp_path: Path, rows: np.ndarray, words: str) -> None:
    refuse(words, vector_pair(tmp_path), VECTORS, tmp_path, rows=rows_file(tmp_path, rows))


def test_rows_that_are_no_file(tmp_path: Path) -> None:
    refuse("rows.npy is not a file", vector_pair(tmp_path), VECTORS, tmp_path, rows="rows.npy")
