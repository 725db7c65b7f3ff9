"""grpc.reflection.v1alpha: describes this server's services to grpcurl, buf curl and others."""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from latentd.transport import messages
from latentd.transport.handlers import CallStream, Handler
from latentd.transport.status import Status


def handlers(services: Sequence[str]) -> dict[str, Handler]:
    """The service's one method, by path. It lists `services`, health and reflection itself."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.ReflectionServicer(names)

    async def info(stream: CallStream) -> Status:
        while (data := await stream.read()) is not None:
            request = messages.parse(reflection_pb2.ServerReflectionRequest, data, messages.SMALL)
            for response in servicer.ServerReflectionInfo(iter([request]), None):
                await stream.write(response.SerializeToString())
        return Status()

    return {f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Handler(info)}
