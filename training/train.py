"""The loop: step, evaluate, log, checkpoint; and the same again after an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import checkpoint, data, figures, networks
from training.checkpoint import Checkpoint
from training.config import Config
from training.data import Dataset
from training.errors import RunFailed, TrainingError
from training.model import Model, Terms, build

LAST: Final = "last.pt"  # where --resume goes on
BEST: Final = "best.pt"  # the highest validation ELBO so far
LOG: Final = "log.jsonl"
_EVALUATION_ROWS: Final = 1024  # in one batch: bounds memory, changes no result


class Run:
    """A model, its optimiser and its generators: all that changes from epoch to epoch."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device, self.split = config, device, dataset.summary()
        self.dataset = data.to(dataset, device)
        self.model = build(config, dataset.spec).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        # Two streams, so that the rows' order does not depend on how much noise was drawn.
        self.order = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed)
        self.history: list[dict[str, Any]] = []

    def epoch(self, bar: tqdm[Any]) -> dict[str, Any]:
        """One pass over the training rows; returns its line for the log, averages over rows.

        A step whose loss or gradient is not finite is skipped and counted. Raises RunFailed if
        all were, or if the validation ELBO is not finite.
        """
        started, number = time.perf_counter(), len(self.history) + 1
        totals, rows, skipped = torch.zeros(3, dtype=torch.float64), 0, 0
        x = self.dataset.train.x
        order = torch.randperm(len(x), generator=self.order)
        batches = torch.split(order, self.config.batch_size)
        for batch in batches:
            terms = self.step(x[batch.to(self.device)])
            bar.update()
            if terms is None:
                skipped += 1
                continue
            totals += torch.stack([term.sum() for term in terms]).double().cpu()
            rows += len(batch)
        validation = evaluate(self.model, self.dataset.validation.x, self.config.seed)
        if not rows or not all(map(math.isfinite, validation.values())):
            raise RunFailed(
                f"Training diverged in epoch {number}: {skipped} of {len(batches)} steps were not "
                "finite. Try again with a smaller --learning-rate or --max-gradient-norm."
            )
        train = dict(zip(Terms._fields, (totals / rows).tolist(), strict=True))
        line = {
            "epoch": number,
            "unit": "nats per example",
            **{f"train_{term}": value for term, value in train.items()},
            **{f"validation_{term}": value for term, value in validation.items()},
            "steps": len(batches),
            "skipped_steps": skipped,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.history.append(line)
        return line

    def step(self, x: Tensor) -> Terms | None:
        """Raise the ELBO of a batch (rows, *shape); None if that had to be skipped."""
        self.optimiser.zero_grad()
        terms: Terms = self.model(x, self.noise)
        loss = -terms.elbo.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        if not torch.isfinite(loss + norm):
            return None
        self.optimiser.step()
        return Terms(*(term.detach() for term in terms))

    def checkpoint(self) -> Checkpoint:
        """This moment, to be saved."""
        return Checkpoint(
            config=self.config,
            spec=self.dataset.spec,
            weights=self.model.state_dict(),
            optimiser=self.optimiser.state_dict(),
            generators={"order": self.order.get_state(), "noise": self.noise.get_state()},
            history=self.history,
            split=self.split,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go on from `saved` as if never stopped. Raises TrainingError if the data has changed
        or fewer epochs are asked for than there were."""
        if saved.split != self.split:
            raise TrainingError(
                f"--data {self.config.data} has changed since this run began: its rows or their "
                "split are not the checkpoint's. Begin a new run with another --out."
            )
        if self.config.epochs < len(saved.history):
            raise TrainingError(
                f"--epochs {self.config.epochs}: this run already has {len(saved.history)}; "
                "ask for more, or leave it out."
            )
        self.model.load_state_dict(saved.weights)
        self.optimiser.load_state_dict(saved.optimiser)
        self.order.set_state(saved.generators["order"])
        self.noise.set_state(saved.generators["noise"])
        self.history = list(saved.history)


@torch.no_grad()
def evaluate(model: Model, x: Tensor, seed: int) -> dict[str, float]:
    """Averages over rows (rows, *shape) of elbo, distortion and rate, in nats per example.

    The draws are the same for each call, so that epochs differ by their weights only.
    """
    noise = torch.Generator(x.device).manual_seed(seed)
    batches = [torch.stack(model(batch, noise)) for batch in torch.split(x, _EVALUATION_ROWS)]
    means = torch.cat(batches, dim=1).double().mean(1)
    return dict(zip(Terms._fields, means.tolist(), strict=True))


def train(config: Config, out: Path, saved: Checkpoint | None = None) -> None:
    """Run until `config.epochs`, from `saved` or from scratch, writing into the folder `out`.

    Standard output and log.jsonl get one JSON line for the run, one for each epoch and one for
    the test rows. Everything that can be wrong with the input is found before `out` is made.
    """
    device = _device(config.device)
    dataset = data.load(config)
    config = networks.fitted(dataclasses.replace(config, device=device.type), dataset.spec.shape)
    run = Run(config, dataset, device)
    if saved:
        run.restore(saved)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {out} cannot be made: {error.strerror}.") from None
    steps = math.ceil(len(dataset.train) / config.batch_size)
    with (
        (out / LOG).open("w") as log,
        tqdm(
            desc="training",
            initial=len(run.history) * steps,
            total=config.epochs * steps,
            unit="step",
            mininterval=0.5,
        ) as bar,
    ):
        _say(_header(run), log)
        for line in run.history:  # the checkpoint knows better than a log cut short
            print(json.dumps(line), file=log)
        for _ in range(len(run.history), config.epochs):
            line = run.epoch(bar)
            if line["epoch"] == best(run.history)["epoch"]:
                checkpoint.save(out / BEST, run.checkpoint())
            checkpoint.save(out / LAST, run.checkpoint())
            _say(line, log)
            bar.set_postfix(validation_elbo=round(line["validation_elbo"], 2), refresh=False)
        model = checkpoint.load(out / BEST).model()
        figures.draw(out, model, dataset.test.x, run.history, config.seed)
        test = evaluate(model, dataset.test.x, config.seed)
        _say(
            {"best_epoch": best(run.history)["epoch"], "unit": "nats per example"}
            | {f"test_{term}": value for term, value in test.items()},
            log,
        )


def best(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The first line with the highest validation ELBO: best.pt is of that epoch."""
    return max(history, key=lambda line: line["validation_elbo"])


def objective(config: Config) -> str:
    """What the elbo of this config's log lines is, in words."""
    if config.model == "ae":
        return "minus the reconstruction's distortion; an autoencoder has no ELBO"
    if config.likelihood == "bernoulli" and config.binarisation == "none":
        return "cross-entropy of grey pixels: good to train on, not a likelihood of the data"
    if config.likelihood == "gaussian":
        return "ELBO of a density over pixels scaled to [0, 1]"
    return "ELBO of binarised pixels"


def _header(run: Run) -> dict[str, Any]:
    return {
        "run": dataclasses.asdict(run.config),
        "objective": objective(run.config),
        "unit": "nats per example",
        "split": run.split,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "device": str(run.device),
    }


def _say(line: dict[str, Any], log: TextIO) -> None:
    text = json.dumps(line, allow_nan=False)
    tqdm.write(text, file=sys.stdout)
    print(text, file=log, flush=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: there is no CUDA device here; use --device cpu.")
    return torch.device(name)
