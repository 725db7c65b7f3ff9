"""Call a server from Python: numpy arrays in, numpy arrays out.

    with Client("localhost:50051") as client:
        samples = client.sample(16, seed=7)  # samples.x: uint8 of shape (16, 28, 28)
        latents = client.encode(samples.x).mean

        client.reconstruct(Texts(["one", "two"])).texts  # of a model of text

        client.sample(4, sizes={"h": 96, "w": 160})  # of a model with free axes
        client.get_model().unavailable  # what the model cannot do, and why

`AsyncClient` has the same methods to await. `latentd.client.calls` documents them, and
`latentd.client.results` their results. A failed call raises an error of `latentd.errors`, or
ServiceError if none of them fits. The client needs grpcio, numpy and pillow.
"""

from latentd.client.arguments import DataPoint, LatentPoint, SampledPoint, Texts
from latentd.client.call import CLIENT_TIMEOUT
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
    "Texts",
]
