"""The KServe Python client over gRPC, unchanged, against a server of the toy bundle: raw and typed
contents.

Usage: python kserve_client.py HOST:PORT
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from toy import INDEX, MEAN, SEED, X, equal


def request(
    model: str, raw: bool = True, parameters: dict | None = None, **arrays: tuple[str, np.ndarray]
) -> InferRequest:
    tensors = []
    for name, (datatype, array) in arrays.items():
        tensors.append(InferInput(name, list(array.shape), datatype))
        tensors[-1].set_data_from_numpy(array, binary_data=raw)
    return InferRequest(model, tensors, request_id="one", parameters=parameters)


async def check(target: str) -> None:
    client = InferenceGRPCClient(target)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("toy:encode")
    for raw in (True, False):
        encoded = await client.infer(request("toy:encode", raw, x=("UINT8", X)))
        assert (encoded.id, encoded.model_name) == ("one", "toy:encode")
        mean, log_var = (output.as_numpy() for output in encoded.outputs)
        equal(mean, MEAN)
        equal(log_var, np.full_like(MEAN, -2))
        decoded = await client.infer(request("toy", raw, z=("FP32", MEAN)))
        equal(decoded.outputs[0].as_numpy(), X)
        seeds = {"seed": ("UINT64", SEED), "index": ("UINT64", INDEX)}
        sampled = await client.infer(request("toy:sample", raw, **seeds))
        assert sampled.outputs[0].as_numpy().shape == (3, 4, 4)
    drawn = {"draw": True, "format": "png", "threshold": 3}
    rebuilt = await client.infer(request("toy:reconstruct", True, drawn, x=("UINT8", X)))
    files = rebuilt.outputs[0].as_numpy()
    assert all(file.startswith(b"\x89PNG") for file in files[:, 0])
    again = await client.infer(request("toy:reconstruct", x=("BYTES", files)))
    assert again.outputs[0].as_numpy().shape == X.shape
    scored = await client.infer(request("toy:score", x=("UINT8", X)))
    assert [output.name for output in scored.outputs] == ["elbo", "log_likelihood", "kl"]
    try:
        await client.infer(request("toy:encode", y=("UINT8", X)))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert 'inputs["y"]' in error.details()
    else:
        raise AssertionError("an unknown input was accepted")
    await client.close()


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1]))
