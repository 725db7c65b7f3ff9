"""A bundle of a model of text: the graphs decode, draw and score as PyTorch does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from latentd import bundle
from latentd.texts import to_rows
from latentd.training import checkpoint, graph_checks
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import RunFailed
from latentd.training.model import VAE, build, text_decoder
from latentd.training.networks import gru, resolve_architecture
from latentd.training.text import export as text_export
from latentd.training.text import graphs as text_graphs
from latentd.training.text import parity as text_parity
from tests.support.exports import export as published
from tests.support.exports import session
from tests.training.conftest import Cli

LENGTH, LATENTS = 6, 3
WORDS = [b"", b"a", b"bc", b"abcde", "é".encode(), b"zzz"]


@pytest.fixture(scope="module")
def net() -> VAE:
    """Large weights make decisions that differ from row to row."""
    config = Config(data="text:no.txt", latent_size=LATENTS, hidden_size=12)
    spec = RowSpec((LENGTH,), "uint8", text=True)
    made = build(resolve_architecture(config, spec.shape), spec).eval()
    assert isinstance(made, VAE)
    for parameter in made.parameters():
        parameter.data.mul_(4)
    return made


@pytest.fixture(scope="module")
def graph(net: VAE) -> bytes:
    return text_graphs.decoder(net, "m")


def latents(rows: int) -> torch.Tensor:
    return torch.randn(rows, LATENTS, generator=torch.Generator().manual_seed(5))


def given(rows: int) -> torch.Tensor:
    return torch.from_numpy(np.resize(to_rows(WORDS, LENGTH), (rows, LENGTH)))


def test_the_decoder_draws_decodes_and_scores_in_any_batch(net: VAE, graph: bytes) -> None:
    decode, rows = session(graph), 90
    choices = text_parity.inputs(latents(rows), given(rows), seed=1)
    mixed = torch.cat(choices)[torch.randperm(3 * rows, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        expected = text_decoder(net).decode(mixed)
    sure = (expected.margin[:, 0] > 1e-5).numpy()
    assert sure.mean() > 0.9
    assert len(expected.x.unique(dim=0)) > 100  # the rows differ
    for batch in (1, 7, 3 * rows):
        parts = [
            decode.run(["x", "log_likelihood"], {"z": part.numpy()}) for part in mixed.split(batch)
        ]
        x, log_p = map(np.concatenate, zip(*parts, strict=True))
        assert (x.dtype, log_p.dtype, log_p.shape) == (np.uint8, np.float32, (3 * rows, 1))
        assert (x == expected.x.numpy())[sure].all()
        np.testing.assert_allclose(log_p[sure], expected.log_p.numpy()[sure], rtol=1e-5, atol=1e-5)


def test_the_decoder_has_neither_loops_nor_nodes_of_the_cpu_only(graph: bytes) -> None:
    kinds = {node.op_type for node in graph_checks.nodes(onnx.load_from_string(graph))}
    for_the_cpu = {"ArgMax", "Pad", "Shape", "CumSum", "GatherND", "NonZero", "TopK"}
    assert not kinds & ({"Loop", "Scan", "If"} | for_the_cpu)


def test_steps_share_their_weights(net: VAE, graph: bytes) -> None:
    """A second set of weights would make the file larger by a step's."""
    model = onnx.load_from_string(graph)
    held = sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    step = gru.Step(text_decoder(net))
    once = sum(t.numel() for t in (*step.parameters(), *step.buffers()))
    start = LATENTS * 12 + 12 + LATENTS * 36
    assert once <= held < once + start + 100


def wrong(graph: bytes, name: str) -> bytes:
    """The graph with a weight of its steps turned round."""
    model = onnx.load_from_string(graph)
    weight = next(t for t in model.graph.initializer if t.name.endswith(name))
    turned = numpy_helper.to_array(weight)[::-1].copy()
    weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    return model.SerializeToString()


@pytest.mark.parametrize("name", ["out.bias", "table", "sums"])
def test_a_graph_that_decodes_otherwise_fails_parity(net: VAE, graph: bytes, name: str) -> None:
    rows = text_parity.inputs(latents(20), given(20), seed=1)
    with torch.no_grad():
        expected = text_decoder(net).decode(rows.sampled)
    with pytest.raises(RunFailed, match=r"texts \(sampled\) from ONNX Runtime have other bytes"):
        text_parity.compare_texts(
            "sampled", session(wrong(graph, name)), rows.sampled, expected, 20
        )


def test_golden_rows_are_far_from_another_byte(net: VAE) -> None:
    arrays = np.load(io.BytesIO(text_export.golden(net, given(30))))
    z = torch.from_numpy(arrays["z"])
    with torch.no_grad():
        decoded = text_decoder(net).decode(z)
    assert float(decoded.margin.min()) >= 1e-4
    assert np.array_equal(arrays["decoded_x"], decoded.x)
    choices = arrays["z"][:, LATENTS:]
    greedy, sampled = (choices < 0).all(1), ((choices >= 0) & (choices < 1)).all(1)
    assert greedy.sum() == sampled.sum() == ((choices >= 1).all(1)).sum() == 16


@pytest.mark.slow
def test_a_run_on_text_is_exported(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"n{number * 7919 % 1000}é" for number in range(120)))
    tiny = ("--hidden-size", 8, "--latent-size", 4, "--epochs", 1, "--tracker", "none")
    assert cli("train", "--data", f"text:{words}", *tiny, "--out", tmp_path / "run")[0] == 0
    best = tmp_path / "run" / "best.pt"
    found = published(cli, best, tmp_path / "bundles", "--threshold-percentile", 99)
    manifest = found.manifest
    assert (manifest.x.kind, manifest.default.x.shape) == ("text", (7,))
    assert manifest.likelihood == bundle.Likelihood("categorical", ())
    assert manifest.default.params is None
    assert "each byte depends" not in manifest.preprocessing
    assert set(found.files) == {bundle.ENCODER, bundle.DECODER, bundle.GOLDEN}
    assert manifest.parity["rows_with_other_bytes"] == {
        "greedy": 0,
        "sampled": 0,
        "teacher_forced": 0,
    }
    net = checkpoint.load(best).model()
    x = torch.from_numpy(to_rows([b"n1\xc3\xa9"], 7))
    mean = session(found.files[bundle.ENCODER]).run(["mean"], {"x": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(mean, net.encode(x)[0], rtol=1e-4, atol=1e-5)
        row = torch.cat((torch.from_numpy(mean), gru.teacher_forced(x)), dim=1)
        expected = -net.distortion(torch.from_numpy(mean), x)
    log_p = session(found.files[bundle.DECODER]).run(["log_likelihood"], {"z": row.numpy()})[0]
    np.testing.assert_allclose(log_p[:, 0], expected, rtol=1e-4, atol=1e-5)
    quantiles = manifest.training_scores["reconstruction_error"]
    assert quantiles[0] > 0
    assert manifest.threshold is not None
    assert manifest.threshold.validation_rows == 11


@pytest.mark.slow
def test_float16_is_refused(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"n{number}" for number in range(100)))
    tiny = ("--hidden-size", 8, "--latent-size", 4, "--epochs", 1, "--tracker", "none")
    assert cli("train", "--data", f"text:{words}", *tiny, "--out", tmp_path / "run")[0] == 0
    best = tmp_path / "run" / "best.pt"
    status, _, err = cli(
        *("export", "--checkpoint", best, "--bundles", tmp_path / "bundles", "--name", "m"),
        *("--precision", "float16"),
    )
    assert status == 2
    assert "--precision float16: texts need float32" in err
    assert not (tmp_path / "bundles").exists()
