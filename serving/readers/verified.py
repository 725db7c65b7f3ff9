"""Files whose bytes are checked while they are read, against sums that were taken before.

A file's times can be set back, and a file can be rewritten and restored between two looks at it. So
the sha256 of each block of BLOCK bytes is taken once, and a block is used only while it still has
it: what was read is then what was summed, whatever was done to the file meanwhile.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from latentd.errors import BadData, InvalidArgument
from latentd.readers import files

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK: Final = 1 << 20
DIGEST_BYTES: Final = 32
_BLOCKS_HELD: Final = 4  # a table's columns are read in turn, each at a place of its own


def blocks(size: int) -> int:
    """The number of blocks in a file of so many bytes."""
    return -(-size // BLOCK)


def take_sums(path: str) -> tuple[str, bytes]:
    """The sha256 of a file in hexadecimal, and the digests of its blocks one after another."""
    whole, digests = hashlib.sha256(), []
    with files.open_file(path) as file, ThreadPoolExecutor(1) as beside:
        for block in _read_blocks(file):
            digest = beside.submit(_sum, block)  # hashlib lets both run at once
            whole.update(block)
            digests.append(digest.result())
    return whole.hexdigest(), b"".join(digests)


def open_verified(path: str, size: int, digest: Callable[[int], bytes]) -> BinaryIO:
    """The file, of which every block that is read must have its digest. Raises BadData here where
    its size is another, and in `read` where a block is."""
    file = files.open_file(path)
    found = file.seek(0, io.SEEK_END)
    if found != size:
        file.close()
        raise _changed(path, f"it has {found:,} bytes, and had {size:,} when the job was planned")
    return io.BufferedReader(_VerifiedFile(file, path, size, digest))


def check(data: bytes, digest: bytes) -> None:
    """Raise InvalidArgument unless the content of a whole file has this digest."""
    if _sum(data) != digest:
        raise InvalidArgument("x", "the file changed after the job was planned")


class Digests:
    """Digests in a file, one after another, of which none is kept in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def after(self, first: int) -> Callable[[int], bytes]:
        """Gives the digest with a number counted from `first`."""
        return lambda number: self.read(first + number, 1)

    def read(self, first: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), DIGEST_BYTES * count, DIGEST_BYTES * first)

    def close(self) -> None:
        self._file.close()


class _VerifiedFile(io.RawIOBase):
    def __init__(
        self, file: BinaryIO, path: str, size: int, digest: Callable[[int], bytes]
    ) -> None:
        self._file, self._path, self._size, self._digest = file, path, size, digest
        self._at = 0
        self._held: dict[int, bytes] = {}  # the block used last is the last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._at >= self._size:
            return 0
        index, skipped = divmod(self._at, BLOCK)
        into = memoryview(buffer).cast("B")
        part = memoryview(self._block(index))[skipped : skipped + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _block(self, index: int) -> bytes:
        block = self._held.pop(index, None)
        if block is None:
            self._file.seek(index * BLOCK)
            block = self._file.read(BLOCK)
            if _sum(block) != self._digest(index):
                first = index * BLOCK
                last = min(first + BLOCK, self._size) - 1
                raise _changed(
                    self._path, f"its bytes {first:,} to {last:,} are not those that the plan knows"
                )
            if len(self._held) == _BLOCKS_HELD:
                del self._held[next(iter(self._held))]
        self._held[index] = block
        return block


def _read_blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _changed(path: str, how: str) -> BadData:
    return BadData(
        f"{files.printable(path)} changed while the job ran: {how}. "
        "Start again with another --output, or restore the file and repeat the command."
    )
