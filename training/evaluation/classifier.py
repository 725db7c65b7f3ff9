"""A small classifier, trained on the data set's own training rows and then frozen.

The Frechet distance uses the features of its last hidden layer. Its confidence tells whether a
decoded row looks like one of the classes. It is trained once per data set and split, then cached.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from latentd.training.dataset import Dataset, RowSpec
from latentd.training.model import to_unit

FEATURES: Final = 64
_MAX_STEPS: Final = 800
_MAX_PASSES: Final = 100  # limit of passes over the training rows: few rows need few steps
_BATCH: Final = 128
_AT_ONCE: Final = 1024  # rows classified at once: bounds memory, changes no result
_FORMAT: Final = "latentd classifier 1"


class Classifier(nn.Module):
    """Rows in the data's form -> features -> one logit for each class."""

    labels: Tensor  # the label of each class, ascending

    def __init__(self, spec: RowSpec, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("labels", labels)
        pictures = spec.kind == "image" and min(spec.shape[:2]) >= 8
        self.body = _convolutions(spec) if pictures else _layers(spec)
        self.head = nn.Linear(FEATURES, len(labels))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: float32 (rows, classes)."""
        logits: Tensor = self.head(self.body(to_unit(x)))
        return logits

    @torch.inference_mode()
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer: float32 (rows, FEATURES)."""
        return torch.cat([self.body(to_unit(part)) for part in torch.split(x, _AT_ONCE)])

    @torch.inference_mode()
    def probabilities(self, x: Tensor) -> Tensor:
        """float32 (rows, classes). A row's largest probability is the confidence."""
        return torch.cat([self(part).softmax(1) for part in torch.split(x, _AT_ONCE)])

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """The fraction of rows classified with their own label."""
        return float((self.labels[self.probabilities(x).argmax(1)] == y).double().mean())


def load_classifier(dataset: Dataset, cache: Path) -> Classifier:
    """The data set's classifier, from `cache` or newly trained. In evaluation mode, on the CPU.

    The data set must have labels.
    """
    assert dataset.train.y is not None, "no labels to learn"
    known = hashlib.sha256(dataset.digest.encode() + dataset.train.y.numpy().tobytes())
    path = cache / f"classifier-{known.hexdigest()[:16]}.pt"
    classifier = _fresh(dataset)
    try:
        classifier.load_state_dict(_read(path) or {})
    except RuntimeError:  # no weights, or another release's weights that may fit in part
        classifier = _fresh(dataset)
        _train(classifier, dataset.train.x, dataset.train.y)
        _write(path, classifier.state_dict())
    return classifier.eval().requires_grad_(False)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/latentd, by default ~/.cache/latentd."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "latentd"


def _fresh(dataset: Dataset) -> Classifier:
    assert dataset.train.y is not None, "no labels to learn"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(dataset.spec, torch.unique(dataset.train.y))


def _train(classifier: Classifier, x: Tensor, y: Tensor) -> None:
    target = torch.searchsorted(classifier.labels, y)
    batch = min(_BATCH, len(x))
    steps = min(_MAX_STEPS, _MAX_PASSES * math.ceil(len(x) / batch))
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    words = "training the classifier"
    for _ in tqdm(range(steps), desc=words, unit="step", mininterval=0.5, disable=None):
        rows = torch.randint(len(x), (batch,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(classifier(x[rows]), target[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # missing or damaged: the caller rebuilds it
        return None
    return raw["weights"] if isinstance(raw, dict) and raw.get("format") == _FORMAT else None


def _write(path: Path, weights: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save({"format": _FORMAT, "weights": weights}, temporary)
    temporary.replace(path)  # atomic: concurrent runs write the same content


class _ChannelsFirst(nn.Module):
    """(rows, height, width[, channels]) -> (rows, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None] if x.ndim == 3 else x.movedim(3, 1)


def _convolutions(spec: RowSpec) -> nn.Sequential:
    height, width, channels = (*spec.shape, 1)[:3]
    return nn.Sequential(
        _ChannelsFirst(),
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), FEATURES),
        nn.ReLU(),
    )


def _layers(spec: RowSpec) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(spec.size, 256),
        nn.ReLU(),
        nn.Linear(256, FEATURES),
        nn.ReLU(),
    )
