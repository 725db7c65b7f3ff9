"""Foreign graphs: unknown operators and opsets, and single changed bytes with valid checksums."""

from __future__ import annotations

import random
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest

from latentd import bundle, codec
from latentd.pb import vae_pb2 as pb

REASONS = ("engine", "external", "signature", "golden")


def refusals(server, reason: str) -> float:
    return server.metric("latentd_reloads_total", result="rejected", reason=reason)


def altered(graph: bytes, how: str) -> bytes:
    """A valid graph that this runtime cannot run."""
    model = onnx.load_from_string(graph)
    match how:
        case "an opset of the future":
            model.opset_import[0].version = 999
        case "an unknown operator":
            model.graph.node[0].op_type = "Telepathy"
        case "an operator of an unknown domain":
            model.graph.node[0].domain = "com.example"
            model.opset_import.add(domain="com.example", version=1)
        case "an IR of the future":
            model.ir_version = 999
        case "a cycle":
            model.graph.node[0].input[0] = model.graph.node[-1].output[0]
        case "no nodes":
            del model.graph.node[:]
    return model.SerializeToString()


def numbers(graph: bytes) -> list[int]:
    """The offsets of a graph's constants in its bytes."""
    constants = [t.raw_data for t in onnx.load_from_string(graph).graph.initializer]
    return [graph.index(data) + at for data in constants for at in range(len(data))]


ALTERED = [
    *("an opset of the future", "an unknown operator", "an operator of an unknown domain"),
    *("an IR of the future", "a cycle", "no nodes"),
]


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("file", [bundle.ENCODER, bundle.DECODER, bundle.LIKELIHOOD])
def test_foreign_graph_is_rejected(root, publish, server, stub, file, how):
    good = bundle.load(root / "toy" / "1").files[file]
    publish(root, levels=101, **{file.replace(".", "_"): altered(good, how)})
    server.scan()
    assert stub.answering() == 1
    assert refusals(server, "engine") == 1, stub.failed()
    reason = stub.failed()[2]
    assert reason.startswith(
        ("ONNX Runtime cannot load the graph: ", "A graph cannot run a batch: ")
    )
    assert "onnxruntime_src" not in reason, "paths of its source must not be shown"


def mutant(graph: bytes, chance: random.Random) -> bytes:
    """The graph with one byte changed, half of the time in a constant."""
    changed = bytearray(graph)
    places = numbers(graph) if chance.random() < 0.5 else range(len(graph))
    changed[chance.choice(places)] ^= chance.randrange(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("mutants", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_mutated_graph_is_rejected_or_correct(
    root, publish, server, stub, mutants, record_property
):
    good = bundle.load(root / "toy" / "1").files
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)  # the golden vectors'
    chance = random.Random(8)
    ends: Counter[str] = Counter()
    for _ in range(mutants):
        file = chance.choice([bundle.ENCODER, bundle.DECODER])
        graph = mutant(good[file], chance)
        path = publish(root, levels=101, **{file.replace(".", "_"): graph})
        before = {reason: refusals(server, reason) for reason in REASONS}
        server.scan()
        (ended,) = {r for r in REASONS if refusals(server, r) > before[r]} or {"served"}
        ends[ended] += 1
        # Whoever answers now, gives what version 1 gave.
        answer = stub.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(x)))
        assert answer.served_by.version == (2 if ended == "served" else 1)
        assert np.abs(codec.from_rows(answer.x).astype(int) - x).max() <= 1
        shutil.rmtree(path)
        server.scan()
        assert stub.answering() == 1
    record_property("figures", f"{mutants} mutants: {dict(ends)}")
    assert ends["golden"] > 0
    assert ends["engine"] > 0


@pytest.mark.parametrize("mutants", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_likelihood_is_rejected_or_correct(root, publish, server, stub, mutants):
    good = bundle.load(root / "toy" / "1").files[bundle.LIKELIHOOD]
    request = pb.ReconstructRequest(
        x=codec.to_rows(np.arange(32, dtype=np.uint8).reshape(2, 4, 4)), include_scores=True
    )
    expected = list(stub.Reconstruct(request).elbo)
    chance = random.Random(9)
    for _ in range(mutants):
        path = publish(root, levels=101, likelihood_onnx=mutant(good, chance))
        server.scan()
        np.testing.assert_allclose(stub.Reconstruct(request).elbo, expected, rtol=1e-4)
        shutil.rmtree(path)
        server.scan()
        assert stub.answering() == 1
