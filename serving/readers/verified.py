"""Read files and verify their bytes against checksums that were computed before.

A file's times can be set back, and a file can be rewritten and restored between two checks. So the
sha256 of each block of BLOCK bytes is computed once. A block is used only if it still matches, so
the rows that are read are those of the checksums, whatever happened to the file meanwhile.
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
_CACHED_BLOCKS: Final = 4  # a table's columns are read alternately, each at its own position


def blocks(size: int) -> int:
    """The number of blocks in a file of `size` bytes."""
    return -(-size // BLOCK)


def compute_digests(path: str) -> tuple[str, bytes]:
    """The sha256 of a file in hexadecimal, and the concatenated digests of its blocks."""
    whole, digests = hashlib.sha256(), []
    with files.open_file(path) as file, ThreadPoolExecutor(1) as executor:
        for block in _read_blocks(file):
            digest = executor.submit(_sha256, block)  # hashlib releases the GIL: both run at once
            whole.update(block)
            digests.append(digest.result())
    return whole.hexdigest(), b"".join(digests)


def open_verified(path: str, size: int, digest: Callable[[int], bytes]) -> BinaryIO:
    """Open a file whose blocks must match their digests. Raises BadData if its size changed; `read`
    raises BadData if a block changed."""
    file = files.open_file(path)
    found = file.seek(0, io.SEEK_END)
    if found != size:
        file.close()
        raise _changed(path, f"it has {found:,} bytes, and had {size:,} when the job was planned")
    return io.BufferedReader(_VerifiedFile(file, path, size, digest))


def check_digest(data: bytes, digest: bytes) -> None:
    """Raise InvalidArgument unless `data`, a whole file, has this digest."""
    if _sha256(data) != digest:
        raise InvalidArgument("x", "the file changed after the job was planned")


class Digests:
    """Concatenated digests in a file; none is kept in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def after(self, first: int) -> Callable[[int], bytes]:
        """A function that returns digest first + i for i."""
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
        self._position = 0
        self._cache: dict[int, bytes] = {}  # the most recently used block is the last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._position >= self._size:
            return 0
        index, skipped = divmod(self._position, BLOCK)
        into = memoryview(buffer).cast("B")
        part = memoryview(self._block(index))[skipped : skipped + len(into)]
        into[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _block(self, index: int) -> bytes:
        block = self._cache.pop(index, None)
        if block is None:
            self._file.seek(index * BLOCK)
            block = self._file.read(BLOCK)
            if _sha256(block) != self._digest(index):
                first = index * BLOCK
                last = min(first + BLOCK, self._size) - 1
                raise _changed(self._path, f"its bytes {first:,} to {last:,} do not match the plan")
            if len(self._cache) == _CACHED_BLOCKS:
                del self._cache[next(iter(self._cache))]
        self._cache[index] = block
        return block


def _read_blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _changed(path: str, how: str) -> BadData:
    return BadData(
        f"{files.printable(path)} changed while the job ran: {how}. "
        "Start over with another --output, or restore the file and rerun the command."
    )
