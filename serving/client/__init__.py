"""Call a server from Python: numpy arrays in, numpy arrays out.

    with Client("localhost:50051") as client:
        samples = client.sample(16, seed=7)  # samples.x: uint8 of shape (16, 28, 28)
        latents = client.encode(samples.x).mean

`AsyncClient` has the same methods to await. They are documented in `serving.client.calls`, their
results in `serving.client.results`. Failures are raised as the errors of `serving.errors`, and as
ServiceError where none of them fits. Needs grpcio, numpy and pillow; nothing of the server.
"""

from serving.client.arguments import DataPoint, LatentPoint, SampledPoint
from serving.client.calls import CLIENT_TIMEOUT
from serving.client.clients import AsyncClient, Client
from serving.client.failures import ServiceError

__all__ = [
    "CLIENT_TIMEOUT",
    "AsyncClient",
    "Client",
    "DataPoint",
    "LatentPoint",
    "SampledPoint",
    "ServiceError",
]
