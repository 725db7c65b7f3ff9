"""tritonclient.grpc.aio, unchanged, against a server of the toy bundle.

Usage: python triton_asyncio.py HOST:PORT
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from toy import MEAN, METADATA, X, equal
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException


def tensor(name: str, datatype: str, array: np.ndarray) -> InferInput:
    made = InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


async def check(target: str) -> None:
    async with InferenceServerClient(target) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("toy")
        assert {m.name for m in (await client.get_model_repository_index()).models} == set(METADATA)
        assert (await client.get_model_config("toy:encode")).config.name == "toy:encode"
        encoded, decoded, *rebuilt = await asyncio.gather(
            client.infer("toy:encode", [tensor("x", "UINT8", X)]),
            client.infer("toy", [tensor("z", "FP32", MEAN)]),
            *(
                client.infer("toy:reconstruct", [tensor("x", "UINT8", X[row : row + 1])])
                for row in range(len(X))
            ),
        )
        equal(encoded.as_numpy("mean"), MEAN)
        equal(decoded.as_numpy("x"), X)
        for row, one in enumerate(rebuilt):
            equal(one.as_numpy("x"), X[row : row + 1])
        try:
            await client.infer("toy:encode", [tensor("x", "FP32", MEAN)])
        except InferenceServerException as error:
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            assert "x.datatype" in error.message() or "x.shape" in error.message()
        else:
            raise AssertionError("x of FP32 was accepted")


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1]))
