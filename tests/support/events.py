"""What TensorBoard and wandb wrote, read back without their tools."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensorboard_values(out: Path) -> Iterator[tuple[str, int, Any]]:
    """The tag, the step and the value of each point of a run, in the order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (out / "tensorboard").iterdir()
    # Records of length, its checksum, an event, its checksum (TensorFlow's record format).
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            yield value.tag, event.step, value
        data = data[16 + length :]


def wandb_records(out: Path) -> Iterator[tuple[str, Any]]:
    """The kind and the content of each record of the only offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = out.glob("wandb/offline-run-*/*.wandb")
    # LevelDB's log after 7 bytes: blocks of 32 KiB; parts of checksum, length, kind and bytes.
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found = Record.FromString(record)
            name = found.WhichOneof("record_type")
            yield name, getattr(found, name)
            record = b""
