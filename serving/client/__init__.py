"""Call a server from Python: numpy arrays in, numpy arrays out.

    with Client("localhost:50051") as client:
        samples = client.sample(16, seed=7)  # samples.x: uint8 of shape (16, 28, 28)
        latents = client.encode(samples.x).mean

`AsyncClient` has the same methods to await. They are documented in `latentd.client.calls`, their
results in `latentd.client.results`. Failures are raised as the errors of `latentd.errors`, and as
ServiceError where none of them fits. Needs grpcio, numpy and pillow; nothing of the server.
"""

from latentd.client.arguments import DataPoint, LatentPoint, SampledPoint
from latentd.client.calls import CLIENT_TIMEOUT
from latentd.client.client import AsyncClient, Client
from latentd.client.retry import ServiceError

__all__ = [
    "CLIENT_TIMEOUT",
    "AsyncClient",
    "Client",
    "DataPoint",
    "LatentPoint",
    "SampledPoint",
    "ServiceError",
]
