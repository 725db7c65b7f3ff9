"""Pictures are decoded once for a run, and again when their files or the settings change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training.config import Config
from latentd.training.data import load
from latentd.training.dataset import Dataset
from latentd.training.errors import TrainingError
from latentd.training.readers import image_folder, picture_cache
from tests.support.processes import StartProcess
from tests.support.runs import TINY

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pictures that have been decoded."""
    paths: list[Path] = []
    read = image_folder.read_picture

    def counted(path: Path, *rest: object) -> object:
        paths.append(path)
        return read(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(image_folder, "read_picture", counted)
    return paths


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.summary() == other.summary()
    for part in ("train", "validation", "test"):
        left, right = getattr(one, part), getattr(other, part)
        assert torch.equal(left.x, right.x)
        assert torch.equal(left.y, right.y)


def test_cached_rows_and_split_are_those_without_a_cache(
    picture_folder: Path, tmp_path: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(data=f"images:{picture_folder}")
    plain, said = load(config), capsys.readouterr().err
    for _ in range(2):
        assert_same(load(config, tmp_path / "run"), plain)
        assert capsys.readouterr().err == said
    assert len(decoded) == 80
    assert len(load(config, tmp_path / "run").train) == 32


def test_cache_is_shared_by_a_run_its_resumption_evaluation_and_export(
    cli: Cli, picture_folder: Path, tmp_path: Path, decoded: list[Path], cache: Path
) -> None:
    out = tmp_path / "run"
    assert cli("train", "--data", f"images:{picture_folder}", "--out", out, *TINY)[0] == 0
    assert cli("train", "--out", out, "--resume", "--epochs", 5)[0] == 0
    evaluate = ("--rows", 4, "--importance-samples", 2, "--cache", cache)
    assert cli("evaluate", out, *evaluate)[0] == 0
    bundles = tmp_path / "bundles"
    export = ("export", "--checkpoint", out / "best.pt", "--bundles", bundles, "--name", "a")
    assert cli(*export)[0] == 0
    assert len(decoded) == 40


def test_cache_may_be_larger_than_the_memory(picture_folder: Path, tmp_path: Path) -> None:
    """For a private mapping that may be written, the kernel asks for as much memory."""
    config = Config(data=f"images:{picture_folder}")
    rows = [load(config, tmp_path / "run").train.x for _ in range(2)]  # made, and found again
    file = tmp_path / "run" / "pictures" / "pixels.npy"
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    modes = [fields[1] for fields in maps if fields[-1] == str(file)]
    assert len(modes) == len(rows)
    assert set(modes) == {"r--s"}


@pytest.mark.parametrize("change", ["bytes", "new file", "size", "color", "seed"])
def test_change_decodes_again(
    picture_folder: Path, tmp_path: Path, decoded: list[Path], change: str
) -> None:
    config = Config(data=f"images:{picture_folder}")
    before = load(config, tmp_path / "run")
    kept = before.train.x.clone()
    settings = {"size": {"image_size": "8x8"}, "color": {"color": "grey"}, "seed": {"seed": 1}}
    config = Config(data=config.data, **settings.get(change, {}))  # type: ignore[arg-type]
    path = picture_folder / "dogs" / ("00.png" if change == "bytes" else "new.png")
    if change in ("bytes", "new file"):
        Image.new("RGB", (18, 11), (1, 2, 3)).save(path)
        os.utime(path, ns=(1, 1))
    decoded.clear()
    after = load(config, tmp_path / "run")
    assert len(decoded) == 40 + (change == "new file")
    assert_same(after, load(config))
    assert torch.equal(before.train.x, kept)  # a mapped file keeps its bytes


def test_interrupted_writing_is_not_taken(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data=f"images:{picture_folder}")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(picture_cache.json, "dump", killed)
        with pytest.raises(KeyboardInterrupt):
            load(config, tmp_path / "run")
    assert_same(load(config, tmp_path / "run"), load(config))


def test_damaged_pictures_are_left_out_of_the_cache(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoded: list[Path]
) -> None:
    damaged = picture_folder / "cats" / "01.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    (picture_folder / "dogs" / "text.png").write_text("no picture")
    config = Config(data=f"images:{picture_folder}")
    with pytest.raises(TrainingError, match="2 of 41 files cannot be used: 1 no picture"):
        load(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = Config(data=config.data, bad_images="skip")
    capsys.readouterr()
    decoded.clear()
    run = tmp_path / "run"
    found = load(config, run)
    said = capsys.readouterr().err
    assert "41 files found, 39 taken, 2 left out" in said
    listed = run / "pictures" / "left_out.txt"
    assert f"{listed} lists all files that cannot be used: 2." in said
    assert sorted(line.partition(": ")[0] for line in listed.read_text().splitlines()) == [
        str(damaged),
        str(picture_folder / "dogs" / "text.png"),
    ]
    assert_same(load(config, run), found)
    assert capsys.readouterr().err == said
    assert len(decoded) == 40, "one damaged picture must not have all decoded again"
    assert_same(found, load(config))
    assert sum(len(part) for part in (found.train, found.validation, found.test)) == 39


def test_list_of_bad_files_goes_when_none_is_left(picture_folder: Path, tmp_path: Path) -> None:
    bad = picture_folder / "dogs" / "text.png"
    bad.write_text("no picture")
    config = Config(data=f"images:{picture_folder}", bad_images="skip")
    load(config, tmp_path / "run")
    bad.unlink()
    load(config, tmp_path / "run")
    assert not (tmp_path / "run" / "pictures" / "left_out.txt").exists()


def test_several_sizes_are_told_before_decoding(
    picture_folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    Image.new("RGB", (5, 5)).save(picture_folder / "dogs" / "small.png")
    with pytest.raises(TrainingError, match="pictures are of 2 sizes"):
        load(Config(data=f"images:{picture_folder}"), tmp_path / "run")
    assert not decoded
    assert not (tmp_path / "run").exists()


def test_folder_of_bad_files_only_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    config = Config(data=f"images:{tmp_path / 'pictures'}", bad_images="skip")
    with pytest.raises(TrainingError, match="1 of 1 files cannot be used"):
        load(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_disk_is_told_before_decoding(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    usage = picture_cache.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(picture_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match="for decoded pictures, and the disk has"):
        load(Config(data=f"images:{picture_folder}"), tmp_path / "run")
    assert not decoded
    assert not (tmp_path / "run").exists()


def test_two_processes_decode_once(
    picture_folder: Path, tmp_path: Path, start_process: StartProcess
) -> None:
    code = f"""
from pathlib import Path
from latentd.training.readers import image_folder
from latentd.training.config import Config
from latentd.training.data import load
read = image_folder.read_picture
def noted(*arguments):
    with open({str(tmp_path / "decoded")!r}, "a") as file:
        file.write("x")
    return read(*arguments)
image_folder.read_picture = noted
print(load(Config(data="images:{picture_folder}"), Path({str(tmp_path / "run")!r})).digest)
"""
    command = [sys.executable, "-c", code]
    both = [start_process(command, stdout=subprocess.PIPE) for _ in range(2)]
    digests = {process.communicate()[0] for process in both}
    assert len(digests) == 1
    assert len(digests.pop()) == 65
    assert (tmp_path / "decoded").read_text() == 40 * "x"


def test_color_is_chosen_by_flag(picture_folder: Path) -> None:
    data = f"images:{picture_folder}"
    grey, color = (load(Config(data=data, color=name)) for name in ("grey", "rgb"))
    assert grey.spec.shape == (11, 18)
    assert color.spec == load(Config(data=data)).spec
    for path in picture_folder.rglob("*.png"):
        with Image.open(path) as picture:
            picture.convert("L").save(path)
    assert load(Config(data=data)).spec.shape == (11, 18)
    rgb = load(Config(data=data, color="rgb"))
    assert rgb.spec.shape == (11, 18, 3)
    assert np.ptp(rgb.train.x.numpy(), axis=3).max() == 0
