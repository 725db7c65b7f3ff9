"""Checkpoints are written completely or not at all. Invalid ones are rejected with a message."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentd.training import checkpoint
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.model import build
from latentd.training.networks import resolve_architecture

Cli = Callable[..., tuple[int, str, str]]


def example(seed: int = 0) -> Checkpoint:
    spec = RowSpec((4, 5), "uint8")
    config = resolve_architecture(Config(hidden_size=8, latent_size=2, seed=seed), spec.shape)
    return Checkpoint(
        config=config,
        spec=spec,
        weights=build(config, spec).state_dict(),
        optimizer={},
        generators={"order": torch.Generator().get_state()},
        history=[{"epoch": 1, "validation_elbo": -1.5}],
        split={"train": 3},
    )


def test_round_trip(tmp_path: Path) -> None:
    saved = example()
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert (loaded.config, loaded.spec) == (saved.config, saved.spec)
    assert (loaded.history, loaded.split) == (saved.history, saved.split)
    for name, value in loaded.model().state_dict().items():
        assert torch.equal(value, saved.weights[name])
    assert not loaded.model().training
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_save_raises_keyboard_interrupt_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, example(seed=1))
    before = path.read_bytes()
    write = checkpoint.write

    class Interrupted(io.BytesIO):
        """Interrupts the fourth of many writes. torch turns that into its own error."""

        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == 4:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(checkpoint, "write", lambda _, saved: write(Interrupted(), saved))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, example(seed=2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_old_checkpoint_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, example(seed=1))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*/last\.pt"):
            checkpoint.save(path, example(seed=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def saved_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def altered(**changes: Any) -> bytes:
    """The file of a valid checkpoint with some of its entries replaced."""
    file = io.BytesIO()
    checkpoint.write(file, example())
    file.seek(0)
    return saved_bytes({**torch.load(file, weights_only=True), **changes})


def settings(**changes: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(example().config), **changes}


def stretched(*shape: int) -> torch.Tensor:
    """A tensor of any shape that takes four bytes."""
    return torch.zeros(1).expand(shape or (1 << 40,))


def huge(hidden: int) -> bytes:
    """Settings of a net of any size, and matching weights, in a file of a few kilobytes."""
    with torch.device("meta"):
        net = build(Config(**settings(hidden_size=hidden)), example().spec)
    weights = {name: stretched(*tensor.shape) for name, tensor in net.state_dict().items()}
    return altered(config=settings(hidden_size=hidden), weights=weights)


def compressed() -> bytes:
    """A compressed file: torch never writes one, but would unpack it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(altered())) as old, zipfile.ZipFile(file, "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a checkpoint ran code",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (lambda: b"", "is damaged or was not written by latentd"),
        (lambda: b"not a checkpoint", "is damaged or was not written by latentd"),
        (lambda: altered()[:-2000], "is damaged or was not written by latentd"),
        (lambda: pickle.dumps(Malice()), "is damaged or was not written by latentd"),
        (lambda: saved_bytes({"code": Malice()}), "is damaged or was not written by latentd"),
        (lambda: saved_bytes({"weight": torch.zeros(3)}), "was not written by this release"),
        (lambda: saved_bytes([1, 2]), "was not written by this release"),
        (lambda: altered(format="latentd checkpoint 99"), "was not written by this release"),
        (lambda: altered(config={"latent": 3}), "unknown settings: latent"),
        (lambda: altered(config={"epochs": "9"}), "--epochs takes a value of"),
        (lambda: altered(weights={}), "is not a checkpoint of this version"),
        (lambda: altered(spec={"shape": [4, 5]}), "is not a checkpoint of this version"),
        (lambda: altered(extra=1), "is not a checkpoint of this version"),
        (lambda: altered(config=settings(hidden_size=1 << 24)), "not of the net that its settings"),
        (
            lambda: altered(config=settings(hidden_size=1 << 50)),
            "is not a checkpoint of this version",
        ),
        (lambda: huge(1 << 24), "is damaged or was not written by latentd"),
        (lambda: compressed(), "is damaged or was not written by latentd"),
        (lambda: altered(optimizer={"state": [stretched()]}), "is damaged or was not written"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "export"])
def test_invalid_checkpoint_is_rejected_with_a_message(
    cli: Cli, tmp_path: Path, content: Callable[[], bytes] | None, words: str, command: str
) -> None:
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    if content:
        path.write_bytes(content())
    before = sorted(tmp_path.rglob("*"))
    if command == "resume":
        status, _, err = cli("train", "--out", path.parent, "--resume")
    else:
        bundles = tmp_path / "bundles"
        status, _, err = cli("export", "--checkpoint", path, "--bundles", bundles, "--name", "m")
    assert status == 2
    assert err.startswith("latentd: ")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_pipe_is_rejected_without_waiting(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last.pt")
    status, _, err = cli("train", "--out", tmp_path, "--resume")
    assert (status, "last.pt cannot be read: not a plain file." in err) == (2, True)


@pytest.mark.parametrize(
    "broken",
    [
        {"optimizer": {}},
        {"optimizer": {"state": {0: {"exp_avg": 3}}}},
        {"optimizer": {"state": {99: {}}}},
        {"generators": {"order": torch.zeros(3), "noise": torch.zeros(3)}},
        {"epoch": {"steps": 1}},
    ],
    ids=str,
)
def test_resume_rejects_an_invalid_state_with_a_message(
    cli: Cli, digits: Path, tmp_path: Path, broken: dict[str, Any]
) -> None:
    saved = checkpoint.load(digits.with_name("last.pt"))
    checkpoint.save(tmp_path / "last.pt", dataclasses.replace(saved, **broken))
    status, _, err = cli("train", "--out", tmp_path, "--resume", "--epochs", 9)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"latentd: {tmp_path / 'last.pt'} is inconsistent (")
