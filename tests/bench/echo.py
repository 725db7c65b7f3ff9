"""The baseline: a bare grpc.aio server that answers every call with the same number of bytes.

Usage: python echo.py BYTES. Prints its address.
"""

from __future__ import annotations

import sys

import grpc
import uvloop


async def main() -> None:
    answer = bytes(int(sys.argv[1]))

    async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return answer

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench", {"Echo": method}),)
    )
    print(f"listening on 127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
