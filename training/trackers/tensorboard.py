"""TensorBoard's event files in OUT/tensorboard: `tensorboard --logdir OUT`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

FOLDER: Final = "tensorboard"
_PARTS: Final = ("train", "validation", "test")


class Run:
    """Event files are written from the beginning, because the end of old ones may be missing."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        self.events = SummaryWriter(str(out / FOLDER))
        text = json.dumps(header, indent=2)
        self.events.add_text("header", "    " + text.replace("\n", "\n    "))  # Markdown: code

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        """Combine train_elbo and validation_elbo into one plot, elbo. Other terms do the same."""
        for name, value in metrics.items():
            part, _, term = name.partition("_")
            self.events.add_scalar(f"{term}/{part}" if part in _PARTS else name, value, number)

    def result(self, epoch: int, metrics: dict[str, float], pictures: list[Path]) -> None:
        self.epoch(epoch, metrics)
        for path in pictures:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self.events.add_image(path.stem, pixels, epoch, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self.events.close()
