"""latentd.atomic: the old content or the new, never a part, and no leftovers."""

import errno
import os

import pytest

from latentd import atomic


def test_write_replaces_a_file(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"old", b"new"):
        atomic.write(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a.json"]


def test_replacing_keeps_the_old_file_when_the_body_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fill_disk():
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full") as raised:
        fill_disk()
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_replacing_takes_folders(tmp_path, durable):
    path = tmp_path / "rows"
    path.mkdir()  # an empty folder may be replaced
    with atomic.replacing(path, durable=durable) as temporary:
        temporary.mkdir()
        (temporary / "0.png").write_bytes(b"x")
    assert [p.name for p in path.iterdir()] == ["0.png"]

    def interrupt():
        with atomic.replacing(tmp_path / "more") as temporary:
            temporary.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert os.listdir(tmp_path) == ["rows"]


def test_replacing_syncs_before_and_after_the_rename(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    monkeypatch.setattr(atomic, "sync", lambda synced: seen.append((synced, path.exists())))
    with atomic.replacing(path) as temporary:
        temporary.touch()
    assert seen == [(temporary, False), (tmp_path, True)]
