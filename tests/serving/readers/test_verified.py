"""Bytes that are read match their checksums, or are rejected."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from latentd.errors import BadData, InvalidArgument
from latentd.readers import verified
from latentd.readers.verified import BLOCK, DIGEST_BYTES, Digests, compute_digests, open_verified

SIZE = 3 * BLOCK + 12_345


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "x").write_bytes(random.Random(0).randbytes(SIZE))
    return tmp_path / "x"


@contextlib.contextmanager
def opened(path: Path, sums: bytes) -> Iterator[BinaryIO]:
    (path.parent / "sums").write_bytes(bytes(DIGEST_BYTES) + sums)
    with (
        contextlib.closing(Digests(path.parent / "sums")) as digests,
        open_verified(str(path), SIZE, digests.after(1)) as file,
    ):
        yield file


def test_digests_cover_the_file_and_each_block(path):
    data = path.read_bytes()
    whole, digests = compute_digests(str(path))
    assert whole == hashlib.sha256(data).hexdigest()
    assert digests[-DIGEST_BYTES:] == hashlib.sha256(data[3 * BLOCK :]).digest()
    assert len(digests) == DIGEST_BYTES * verified.blocks(SIZE) == 4 * DIGEST_BYTES


def test_unchanged_file_is_read(path):
    data, places = path.read_bytes(), random.Random(1)
    with opened(path, compute_digests(str(path))[1]) as file:
        assert file.read() == data
        for _ in range(200):
            begin, length = places.randrange(SIZE + 10), places.randrange(2 * BLOCK)
            assert file.seek(begin) == begin
            assert file.read(length) == data[begin : begin + length]
        assert file.seek(-5, io.SEEK_END) == SIZE - 5
        assert file.read() == data[-5:]


def test_changed_block_is_rejected_despite_restored_times(path):
    sums, times = compute_digests(str(path))[1], path.stat()
    with path.open("r+b") as file:
        file.seek(2 * BLOCK + 7)
        file.write(b"other")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with opened(path, sums) as file:
        file.read(2 * BLOCK)
        with pytest.raises(
            BadData, match=r"its bytes 2,097,152 to 3,145,727 do not match the plan"
        ):
            file.read(1)


def test_change_after_opening_is_detected(path):
    sums, data = compute_digests(str(path))[1], path.read_bytes()
    with opened(path, sums) as file:
        assert file.read(10) == data[:10]
        path.write_bytes(bytes(SIZE))  # in place: the same inode
        with pytest.raises(BadData, match="changed while the job ran"):
            file.read(2 * BLOCK)


def test_other_size_is_rejected_at_once(path):
    sums = compute_digests(str(path))[1]
    with path.open("ab") as file:
        file.write(b"more")
    rejected = pytest.raises(BadData, match="it has 3,158,077 bytes, and had 3,158,073")
    with rejected, opened(path, sums):
        pass


def test_whole_file_is_checked_by_its_digest():
    verified.check_digest(b"pixels", hashlib.sha256(b"pixels").digest())
    with pytest.raises(InvalidArgument, match="changed after the job was planned"):
        verified.check_digest(b"others", hashlib.sha256(b"pixels").digest())
