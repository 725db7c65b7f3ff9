"""A name server of a test's own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence


class Names:
    """A DNS server that gives every name the same addresses, which may be changed."""

    def __init__(self) -> None:
        self.addresses: Sequence[str] = ("127.0.0.1",)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # of the question: a name, a type and a class
            is_a = query[end - 4 : end - 2] == b"\0\x01"
            records = [
                # The name of offset 12, type A, class IN, no time to live, four bytes.
                struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
                for address in self.addresses
                if is_a
            ]
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
            self._socket.sendto(header + query[12:end] + b"".join(records), asker)

    def close(self) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()
