"""grpc.reflection.v1alpha: describes this server's services to grpcurl, buf curl and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from latentd.transport import messages
from latentd.transport.handlers import CallStream, Handler
from latentd.transport.status import Status

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


def handlers(services: Sequence[ServiceDescriptor]) -> dict[str, Handler]:
    """The service's one method, by path. It describes `services`, health and reflection itself."""
    described = (*services, HEALTH, REFLECTION)
    pool = DescriptorPool()  # the services' own are several
    for service in described:
        pool.AddSerializedFile(service.file.serialized_pb)
    servicer = reflection.ReflectionServicer([service.full_name for service in described], pool)

    async def info(stream: CallStream) -> Status:
        while (data := await stream.read()) is not None:
            request = messages.parse(reflection_pb2.ServerReflectionRequest, data, messages.SMALL)
            for response in servicer.ServerReflectionInfo(iter([request]), None):
                await stream.write(response.SerializeToString())
        return Status()

    return {f"/{REFLECTION.full_name}/ServerReflectionInfo": Handler(info)}
