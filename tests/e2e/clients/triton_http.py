"""tritonclient.http, unchanged, against a server of the toy bundle: sync, its threads, asyncio.

Usage: python triton_http.py HOST:PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

ROWS = 32  # at a time
X = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
MEAN = X.reshape(4, 16).astype(np.float32) / np.float32(255)


def inputs(binary: bool, **arrays: tuple[str, np.ndarray]) -> list[InferInput]:
    made = []
    for name, (datatype, array) in arrays.items():
        made.append(InferInput(name, array.shape, datatype))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def equal(found: object, expected: object) -> None:
    np.testing.assert_array_equal(found, expected)


def check_methods(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy:encode", "1")
    assert not client.is_model_ready("missing")
    assert client.get_server_metadata()["name"] == "latentd"
    assert client.get_model_metadata("toy:encode")["inputs"][0]["name"] == "x"
    assert client.get_model_config("toy")["max_batch_size"] > 1
    assert {one["name"] for one in client.get_model_repository_index()} >= {"toy", "toy:sample"}


def check_operations(client: triton.InferenceServerClient) -> None:
    for binary in (True, False):
        given = inputs(binary, x=("UINT8", X))
        asked = [InferRequestedOutput(name, binary_data=binary) for name in ("mean", "log_var")]
        encoded = client.infer("toy:encode", given, outputs=asked)
        equal(encoded.as_numpy("mean"), MEAN)
        equal(encoded.as_numpy("log_var"), np.full_like(MEAN, -2))
        decoded = client.infer("toy", inputs(binary, z=("FP32", MEAN)), request_id="one")
        equal(decoded.as_numpy("x"), X)
        assert decoded.get_response()["id"] == "one"
    files = client.infer("toy", inputs(True, z=("FP32", MEAN)), parameters={"format": "png"})
    again = client.infer("toy:reconstruct", inputs(True, x=("BYTES", files.as_numpy("x"))))
    equal(again.as_numpy("x"), X)
    for dtype in ("FP16", "BF16"):
        asked = [InferRequestedOutput("params")]
        parameters = {"float_dtype": dtype}
        found = client.infer(
            "toy", inputs(True, z=("FP32", MEAN)), outputs=asked, parameters=parameters
        )
        np.testing.assert_allclose(
            found.as_numpy("params").astype(np.float32).reshape(MEAN.shape), MEAN, rtol=2**-8
        )


def check_errors(client: triton.InferenceServerClient) -> None:
    def fails(words: str, *args: Any, **kwargs: Any) -> None:
        try:
            client.infer(*args, **kwargs)
        except InferenceServerException as error:
            assert words in str(error), error
            return
        raise AssertionError(f"{args} did not fail")

    images = inputs(True, x=("UINT8", X))
    fails("Model 'missing' is not served", "missing", images)
    fails("x.shape", "toy:encode", inputs(True, x=("UINT8", X[0])))
    fails("classification", "toy", images, outputs=[InferRequestedOutput("x", class_count=3)])
    fails("content-encoding: gzip", "toy", images, request_compression_algorithm="gzip")


def check_async_infer(client: triton.InferenceServerClient, count: int = ROWS) -> None:
    seed = np.array([[7]], np.uint64)
    calls = [
        client.async_infer(
            "toy:sample",
            inputs(True, seed=("UINT64", seed), index=("UINT64", np.array([[row]], np.uint64))),
        )
        for row in range(count)
    ]
    index = np.arange(count, dtype=np.uint64)[:, None]
    together = client.infer(
        "toy:sample",
        inputs(True, seed=("UINT64", np.full_like(index, 7)), index=("UINT64", index)),
    )
    equal(
        np.concatenate([call.get_result().as_numpy("x") for call in calls]), together.as_numpy("x")
    )


async def check_asyncio(target: str, count: int = ROWS) -> None:
    async with triton_aio.InferenceServerClient(target) as client:
        assert await client.is_server_ready()
        given = inputs(True, x=("UINT8", X))
        for found in await asyncio.gather(
            *(client.infer("toy:encode", given) for _ in range(count))
        ):
            equal(found.as_numpy("mean"), MEAN)


def main(arguments: Sequence[str]) -> None:
    client = triton.InferenceServerClient(arguments[0], concurrency=ROWS)
    check_methods(client)
    check_operations(client)
    check_errors(client)
    check_async_infer(client)
    client.close()
    asyncio.run(check_asyncio(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
