"""How long an epoch takes: this project's loop compared with the textbook's.

The textbook: a Dataset that turns one picture at a time into a float tensor, as torchvision does, a
DataLoader of batches of 128, Adam, loss.item() in every step. Same net, same objective, same rows,
and both in turns, round by round, in one call of this script. Absolute figures depend on the load
of the machine; ratios do not.
Usage: python tests/bench/bench_training.py [--rows 12800] [--rounds 5] [--nets iwae ...]
       [--data idx:DIR] [--out bench/training.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from latentd.training import networks
from latentd.training.config import Config
from latentd.training.data import load
from latentd.training.dataset import Dataset, Rows
from latentd.training.model import build
from latentd.training.trainer import Trainer

BATCH = 128
REACH = 0.33  # of the textbook's seconds
NETS = {"mlp": 20, "iwae": 50, "gated": 40, "resnet": 20}  # architecture -> latent size


@dataclass
class Images(torch.utils.data.Dataset[Tensor]):
    """uint8 images (rows, height, width), each converted to a float tensor when it is read."""

    images: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        # What torchvision's MNIST and its ToTensor do.
        picture = Image.fromarray(self.images[row])
        image = torch.from_numpy(np.array(picture, copy=True)[..., None]).permute(2, 0, 1)
        return image.contiguous().to(torch.float32).div(255)


class Textbook:
    """The loop of many tutorials."""

    def __init__(
        self, config: Config, dataset: Dataset, device: torch.device | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        self.model = build(config, dataset.spec).to(self.device)
        self.loader = DataLoader(Images(dataset.train.x.numpy()), BATCH, shuffle=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def epoch(self) -> float:
        total = 0.0
        for batch in self.loader:
            x = torch.bernoulli(batch[:, 0].to(self.device))
            self.optimizer.zero_grad()
            mean, log_var = self.model.encode(x)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
            logits = self.model.decode(z)[:, 0]
            distortion = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            rate = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss = (distortion + rate) / len(x)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total


def ours(config: Config, dataset: Dataset) -> Callable[[], object]:
    return Trainer(config, dataset, torch.device("cpu")).epoch


def settings(net: str, **changes: Any) -> Config:
    config = Config(
        architecture=net,
        latent_size=NETS[net],
        likelihood="bernoulli",
        binarization="dynamic",
        learning_rate=1e-3,
        validate_every=1 << 20,
        epochs=1 << 20,
        device="cpu",
        precision="float32",
        batch_size=BATCH,
    )
    return networks.resolve_architecture(replace(config, **changes), (28, 28))


def measure(net: str, dataset: Dataset, rounds: int) -> list[dict[str, Any]]:
    """One line for each way to run this project's loop."""
    ways = {
        "the same batch": settings(net),
        "--precision bfloat16": settings(net, precision="bfloat16"),
        "--precision bfloat16 --compile": settings(net, precision="bfloat16", compile=True),
        "--precision bfloat16 --batch-size 512": settings(
            net, precision="bfloat16", batch_size=512
        ),
    }
    passes = {"textbook": Textbook(settings(net), dataset).epoch}
    passes |= {way: ours(config, dataset) for way, config in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    cpu: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(rounds + 1):
        for name, run in passes.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
    lines = []
    for way in ways:
        ratio = median_ratio(seconds[way], seconds["textbook"])
        lines.append(
            {
                "architecture": net,
                "way": way,
                "ratio": round(ratio, 3),
                "met": ratio <= REACH,
                "cpu_ratio": round(median_ratio(cpu[way], cpu["textbook"]), 3),
                "seconds_per_60000_rows": {
                    name: round(statistics.median(seconds[name]) * 60_000 / len(dataset.train), 2)
                    for name in ("textbook", way)
                },
            }
        )
    return lines


def median_ratio(measured: list[float], reference: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(measured, reference, strict=True))


def noise(rows: int) -> Dataset:
    """Random images with as many black pixels as MNIST's."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (rows, 28, 28), np.uint8) * (rng.random((rows, 28, 28)) < 0.2)
    some = Rows(torch.from_numpy(x[:16].astype(np.uint8)), None)
    return Dataset(Rows(torch.from_numpy(x.astype(np.uint8)), None), some, some, False, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=12_800, help="in a pass (12800)")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--data", help="as in train; default: random images of 28x28")
    parser.add_argument("--out", type=Path, default=Path("bench/training.json"))
    args = parser.parse_args()
    dataset = noise(args.rows)
    if args.data:
        whole = load(replace(settings("mlp"), data=args.data))
        dataset = replace(whole, train=Rows(whole.train.x[: args.rows], None))
    print(f"{os.cpu_count()} CPUs, {args.rounds} rounds of {len(dataset.train)} rows; medians")
    table = []
    for net in args.nets:
        for line in measure(net, dataset, args.rounds):
            table.append(line)
            took = line["seconds_per_60000_rows"]
            print(
                f"{line['architecture']:6} {line['way']:38} {line['ratio']:5.2f}  <= {REACH}  "
                f"{'met ' if line['met'] else 'MISS'}  CPU {line['cpu_ratio']:.2f}  "
                f"{took[line['way']]:.1f} s and {took['textbook']:.1f} s for 60,000 rows"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(table, indent=2))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    main()
