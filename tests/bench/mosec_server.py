"""The same nets behind mosec, a server whose front is written in Rust, to compare with.

Runs in an environment of its own, with mosec, onnxruntime and numpy. It does what latentd's calls
do, with less to say: /sample and /sample-many take a count and a seed, /reconstruct the bytes of
one image; all answer the images' bytes. BENCH_BUNDLE is the folder of the graphs, MOSEC_PORT the
port.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import onnxruntime as ort
from mosec import Runtime, Server, Worker

BATCH_ROWS = 64  # of a batch of calls that ask for one row each
MANY = 8  # calls of a batch of those that ask for many rows
WAIT_MS = 1  # how long a batch waits for more calls
REQUEST = struct.Struct("<IQ")  # count, seed


def session(name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(Path(os.environ["BENCH_BUNDLE"]) / name), options)


class Bytes(Worker):  # type: ignore[misc]
    """Requests and responses are bytes as they are."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


class Sample(Bytes):
    def __init__(self) -> None:
        self._decoder = session("decoder.onnx")

    def forward(self, data: list[bytes]) -> list[bytes]:
        calls = [REQUEST.unpack(call) for call in data]
        z = np.concatenate(
            [
                np.random.Generator(np.random.Philox(seed)).standard_normal((count, 20), np.float32)
                for count, seed in calls
            ]
        )
        (x,) = self._decoder.run(["x"], {"z": z})
        ends = np.cumsum([count for count, _ in calls])
        return [part.tobytes() for part in np.split(x, ends[:-1])]


class Reconstruct(Bytes):
    def __init__(self) -> None:
        self._encoder, self._decoder = session("encoder.onnx"), session("decoder.onnx")

    def forward(self, data: list[bytes]) -> list[bytes]:
        x = np.frombuffer(b"".join(data), np.uint8).reshape(-1, 28, 28)
        (mean,) = self._encoder.run(["mean"], {"x": x})
        (again,) = self._decoder.run(["x"], {"z": mean})
        return [row.tobytes() for row in again]


def main() -> None:
    server = Server()
    server.register_runtime(
        {
            "/sample": [Runtime(Sample, max_batch_size=BATCH_ROWS, max_wait_time=WAIT_MS)],
            "/reconstruct": [
                Runtime(Reconstruct, max_batch_size=BATCH_ROWS, max_wait_time=WAIT_MS)
            ],
            "/sample-many": [Runtime(Sample, max_batch_size=MANY, max_wait_time=WAIT_MS)],
        }
    )
    server.run()


if __name__ == "__main__":
    main()
