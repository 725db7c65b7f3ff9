"""The folder that the workers of one server share: servers that start together have one each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from latentd.models import load_markers, trial_results


def test_a_folder_that_another_server_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def mkdtemp(prefix: str, dir: Path) -> str:
        folder = tempfile.mkdtemp(prefix=prefix, dir=dir)
        made.append(folder)
        if len(made) == 1:  # before it is locked
            shutil.rmtree(folder)
        return folder

    monkeypatch.setattr(trial_results, "mkdtemp", mkdtemp)
    with trial_results.shared_folder(str(tmp_path)) as folder:
        assert folder is not None
        assert folder.is_dir()
        assert len(made) == 2
    assert not folder.exists()


def test_only_folders_of_ended_servers_are_removed(tmp_path: Path) -> None:
    parent = load_markers.state_folder(str(tmp_path))
    assert parent is not None
    ended = Path(tempfile.mkdtemp(prefix="trials-", dir=parent))
    with trial_results.shared_folder(str(tmp_path)) as first:
        assert not ended.exists()
        with trial_results.shared_folder(str(tmp_path)) as second:
            assert first is not None
            assert second is not None
            assert first.is_dir()
            assert second.is_dir()
