"""tritonclient.grpc, unchanged, against a server of the toy bundle: every operation and method.

Usage: python triton.py HOST:PORT
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from toy import INDEX, MEAN, METADATA, SEED, X, equal
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException


def inputs(**arrays: tuple[str, np.ndarray]) -> list[InferInput]:
    made = []
    for name, (datatype, array) in arrays.items():
        made.append(InferInput(name, array.shape, datatype))
        made[-1].set_data_from_numpy(array)
    return made


def outputs(*names: str) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name) for name in names]


def code(call: Any, *args: Any, **kwargs: Any) -> str:
    """The status and message of a call that fails."""
    try:
        call(*args, **kwargs)
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    raise AssertionError(f"{args} did not fail")


def check_methods(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy:encode", "1")
    assert not client.is_model_ready("missing")
    assert client.get_server_metadata().name == "latentd"
    listed = {model.name for model in client.get_model_repository_index().models}
    assert listed == set(METADATA)
    for name, (needed, given) in METADATA.items():
        metadata = client.get_model_metadata(name)
        assert {tensor.name for tensor in metadata.inputs} == needed
        assert {tensor.name for tensor in metadata.outputs} == given
        config = client.get_model_config(name).config
        assert config.max_batch_size > 1
        assert {tensor.name for tensor in config.output} == given


def check_operations(client: InferenceServerClient) -> None:
    images = inputs(x=("UINT8", X))

    def infer(model: str, given: list[InferInput], *names: str, **options: Any) -> InferResult:
        asked = outputs(*names) if names else None
        return client.infer(model, given, outputs=asked, **options)

    encoded = infer("toy:encode", images)
    equal(encoded.as_numpy("mean"), MEAN)
    equal(encoded.as_numpy("log_var"), np.full_like(MEAN, -2))
    drawn = infer("toy:encode", images, "z", parameters={"seed": 5})
    again = infer("toy:encode", images, "z", parameters={"seed": 5}, request_id="again")
    equal(drawn.as_numpy("z"), again.as_numpy("z"))
    assert again.get_response().id == "again"

    for datatype, z in (("FP32", MEAN), ("FP16", MEAN.astype(np.float16))):
        equal(infer("toy:decode", inputs(z=(datatype, z))).as_numpy("x"), X)
    equal(infer("toy", inputs(z=("FP32", MEAN)), model_version="1").as_numpy("x"), X)
    for dtype in ("FP32", "FP16", "BF16"):
        asked = inputs(z=("FP32", MEAN))
        params = infer("toy", asked, "params", parameters={"float_dtype": dtype})
        found = params.as_numpy("params").astype(np.float32).reshape(MEAN.shape)
        np.testing.assert_allclose(found, MEAN, rtol=0 if dtype == "FP32" else 2**-8)

    rebuilt = infer("toy:reconstruct", images)
    equal(rebuilt.as_numpy("x"), X)
    scores = [rebuilt.as_numpy(name) for name in ("reconstruction_error", "kl", "elbo")]
    np.testing.assert_allclose(scores[2], -scores[0] - scores[1], rtol=1e-5)
    files = infer("toy", inputs(z=("FP32", MEAN)), parameters={"format": "png"}).as_numpy("x")
    assert all(file.startswith(b"\x89PNG") for file in files[:, 0])
    equal(infer("toy:reconstruct", inputs(x=("BYTES", files)), "x").as_numpy("x"), X)
    outliers = infer("toy:reconstruct", images, "is_outlier", parameters={"threshold": 0.0})
    assert outliers.as_numpy("is_outlier").dtype == bool

    scored = infer("toy:score", images, parameters={"draws": 4}, priority=2, timeout=60_000_000)
    assert scored.as_numpy("log_likelihood").shape == (4, 1)

    sampled = infer("toy:sample", inputs(seed=("UINT64", SEED), index=("UINT64", INDEX)), "x", "z")
    last = inputs(seed=("UINT64", SEED[2:]), index=("UINT64", INDEX[2:]))
    equal(infer("toy:sample", last, "z").as_numpy("z"), sampled.as_numpy("z")[2:])


def check_errors(client: InferenceServerClient) -> None:
    images = inputs(x=("UINT8", X))
    assert "NOT_FOUND Model 'missing'" in code(client.infer, "missing", images)
    assert "INVALID_ARGUMENT x.shape" in code(client.infer, "toy:encode", inputs(x=("UINT8", X[0])))
    assert "classification" in code(
        client.infer, "toy", images, outputs=[InferRequestedOutput("x", class_count=3)]
    )
    assert "sequence_id" in code(client.infer, "toy:encode", images, sequence_id=3)
    shared = InferInput("x", X.shape, "UINT8")
    shared.set_shared_memory("region", X.nbytes)
    assert "does not share memory" in code(client.infer, "toy:encode", [shared])
    assert "DEADLINE_EXCEEDED" in code(client.infer, "toy:encode", images, timeout=1)
    slow = inputs(x=("UINT8", np.zeros((256, 4, 4), np.uint8)))
    late = code(client.infer, "toy:score", slow, parameters={"draws": 1024}, client_timeout=0.02)
    assert "DEADLINE_EXCEEDED" in late or "RESOURCE_EXHAUSTED" in late, late
    assert "UNIMPLEMENTED" in code(client.load_model, "toy")


def check_async_infer(client: InferenceServerClient, count: int = 100) -> None:
    """Many requests at once share batches; each gets its own rows."""
    answers: queue.Queue[tuple[int, InferResult, object]] = queue.Queue()
    for row in range(count):
        index = np.array([[row]], np.uint64)
        client.async_infer(
            "toy:sample",
            inputs(seed=("UINT64", SEED[:1]), index=("UINT64", index)),
            callback=lambda result, error, row=row: answers.put((row, result, error)),
        )
    rows: dict[int, np.ndarray] = {}
    for _ in range(count):
        row, result, error = answers.get(timeout=120)
        assert error is None, error
        rows[row] = result.as_numpy("x")[0]
    indices = np.arange(count, dtype=np.uint64)[:, None]
    together = client.infer(
        "toy:sample",
        inputs(seed=("UINT64", np.full_like(indices, 7)), index=("UINT64", indices)),
    )
    equal(np.stack([rows[row] for row in range(count)]), together.as_numpy("x"))
    statistics = client.get_inference_statistics("toy:sample").model_stats[0]
    assert statistics.inference_count >= 2 * count


def main(arguments: Sequence[str]) -> None:
    with InferenceServerClient(arguments[0]) as client:
        check_methods(client)
        check_operations(client)
        check_errors(client)
        check_async_infer(client)


if __name__ == "__main__":
    main(sys.argv[1:])
