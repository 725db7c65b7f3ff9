"""A model, its optimiser and its generators: all that changes from step to step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from latentd.training import data, parallel, schedules
from latentd.training.average import Average
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.data import Dataset
from latentd.training.errors import RunFailed, TrainingError
from latentd.training.model import Model, Terms, build, normal, observe
from latentd.training.objective import objective
from latentd.training.optimiser import Optimiser
from latentd.training.recording import Cuda, Recorder
from latentd.training.threads import Contention

_EVALUATION_ROWS: Final = 1024  # in one batch, at most
_SUMS: Final = ("objective", *Terms._fields, "rows", "steps")  # of the epoch so far


_SAME: Final = ("train", "validation", "test", "digest")  # of the split, when a run is resumed


class Run:
    """One run on one device; `checkpoint` and `restore` may fall between any two steps."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device, self.split = config, device, dataset.summary()
        self.dataset = data.to(dataset, device)
        self.model = build(config, dataset.spec).to(device)
        self.average = Average(self.model, config.ema) if config.ema else None
        self.bound, self.settle = self._bound, self._settle
        if config.compile:
            # Not dynamic: batches have two sizes at most, and the code of each must not depend on
            # which came first, or a resumed run would not end with the same bits.
            self.bound = torch.compile(self._bound, dynamic=False)
            self.settle = torch.compile(self._settle, dynamic=False)
        self.parameters = list(self.model.parameters())
        self.optimiser = Optimiser(config.optimiser, self.model)
        # Two streams, so that the rows' order does not depend on how much noise was drawn.
        self.order = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed)
        self.history: list[dict[str, Any]] = []
        self.steps = math.ceil(len(dataset.train) / config.batch_size)  # in an epoch
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.recorder = self._recorder()
        self.contention = Contention()
        self._begin()

    def _begin(self) -> None:
        """Stand before the first step of the next epoch."""
        self.step_number = 0
        self.began = self.order.get_state()  # gives this epoch's order again
        self.sums.zero_()  # in place: recordings add to them
        self.seconds = self.cpu_seconds = 0.0

    def _recorder(self) -> Recorder | None:
        """For steps of which nothing waits: Muon's do, and those of several processes for them."""
        config = self.config
        if self.device.type != "cuda" or not config.compile:
            return None
        if config.optimiser != "adam" or parallel.count() > 1:
            return None
        return Recorder(self._move, Cuda(self.device))

    @property
    def done(self) -> int:
        """Steps so far, skipped ones included."""
        return len(self.history) * self.steps + self.step_number

    @property
    def evaluated(self) -> Model:
        """What is validated and exported: the weights' average, or the weights."""
        return self.average.model if self.average else self.model

    def epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The rest of a pass over the training rows; returns its line for the log, averages over
        rows. `after_step` is called between steps.

        A step whose loss or gradient is not finite is skipped and counted. Raises RunFailed if
        all were, or if the validation ELBO is not finite.
        """
        clock = _Clock(self)
        x, size = self.dataset.train.x, self.config.batch_size
        order = torch.randperm(len(x), generator=self.order).to(self.device, non_blocking=True)
        for start in range(self.step_number * size, len(x), size):
            with self.contention:
                self.step(x.index_select(0, order[start : start + size]))
            clock.tick()
            after_step()
        line = self._line(len(self.history) + 1)
        clock.tick()
        line |= {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}
        self.history.append(line)
        self._begin()
        return line

    def step(self, x: Tensor) -> None:
        """Raise the objective of a batch (rows, *shape), or skip it if that cannot be done."""
        rows, config, epoch = len(x), self.config, self.done / self.steps
        x = parallel.share(observe(x, self.noise, self.model.binarise))
        noise = parallel.share(normal((config.k, rows, config.latent_size), self.noise), axis=1)
        weight, rate = schedules.kl_weight(config, epoch), schedules.learning_rate(config, epoch)
        pull = self.average.pull(self.done) if self.average else 0.0
        if self.recorder:
            self.recorder(rows, (x, noise), (weight, rate, pull))
        else:
            # A tensor: compiled code holds for one value of a number. Filled on the device: a copy
            # from here would wait until all that was asked of a GPU is done.
            self._move(rows, x, noise, torch.full((), weight, device=self.device), rate, pull)
        self.step_number += 1

    def _move(
        self,
        rows: int,
        x: Tensor,
        noise: Tensor,
        kl_weight: Tensor,
        learning_rate: float | Tensor,
        pull: float | Tensor,
    ) -> None:
        """The part of a step that draws nothing and that may be recorded: see Recorder.

        rows: of the batch, over all processes. x, noise: this process's share, observed and
        (k, rows, latent_size). kl_weight, learning_rate, pull: where the schedules stand.
        """
        # Before the forward pass: a recording has no gradients of an earlier one to let go of.
        for parameter in self.parameters:
            parameter.grad = None
        raised, sums = self.bound(x, noise, kl_weight)
        (-raised / rows).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        parallel.add([*gradients, sums])
        norm = torch.nn.utils.get_total_norm(gradients)
        shorter, finite = self.settle(sums, norm, self.sums)
        torch._foreach_mul_(gradients, shorter)
        self.optimiser.step(learning_rate, finite)
        if self.average:
            self.average.follow(pull)

    def _bound(self, x: Tensor, noise: Tensor, kl_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the rows: of the objective, (), and of all but steps in _SUMS."""
        config = self.config
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        ):
            draws = self.model.draw(x, noise)
        raised = objective(self.model, draws, kl_weight, config.free_bits).sum()
        terms = [term.detach().sum() for term in self.model.terms(draws)]
        rows = raised.new_full((), len(x))
        return raised, torch.stack([raised.detach(), *terms, rows])

    def _settle(self, sums: Tensor, norm: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Add a step's sums to the epoch's, `total`, if it is finite. Returns what to multiply the
        gradient of this norm by, and whether the step is finite: both ()."""
        finite = torch.isfinite(sums.sum() + norm)
        total += torch.where(finite, torch.cat((sums, torch.ones_like(sums[:1]))), 0.0)
        return (self.config.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0), finite

    def _line(self, number: int) -> dict[str, Any]:
        sums = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        last = (self.done - 1) / self.steps  # where schedules stood in the epoch's last step
        rows, skipped = sums.pop("rows"), self.steps - int(sums.pop("steps"))
        due = number % self.config.validate_every == 0 or number == self.config.epochs
        validation: dict[str, float] = {}
        if due:
            x, seed = self.dataset.validation.x, self.config.seed
            validation = parallel.agreed(evaluate(self.evaluated, x, seed))
        if not rows or not all(map(math.isfinite, validation.values())):
            raise RunFailed(
                f"Training diverged in epoch {number}: {skipped} of {self.steps} steps were not "
                "finite. Try again with a smaller --learning-rate or --max-gradient-norm."
            )
        return {
            "epoch": number,
            "unit": "nats per example",
            **{f"train_{term}": value / rows for term, value in sums.items()},
            **{f"validation_{term}": value for term, value in validation.items()},
            "learning_rate": schedules.learning_rate(self.config, last),
            "kl_weight": schedules.kl_weight(self.config, last),
            "steps": self.steps,
            "skipped_steps": skipped,
        }

    def checkpoint(self) -> Checkpoint:
        """This moment, to be saved."""
        return Checkpoint(
            config=dataclasses.replace(self.config, device=self.device.type),
            spec=self.dataset.spec,
            weights=self.evaluated.state_dict(),
            trained=self.model.state_dict() if self.average else None,
            optimiser=self.optimiser.state_dict(),
            generators={"order": self.began, "noise": self.noise.get_state()},
            history=self.history,
            split=self.split,
            epoch={
                "steps": self.step_number,
                "sums": self.sums.clone(),
                "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds,
            },
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go on from `saved` as if never stopped; on another kind of device, whose generators are
        others, with noise drawn anew. Raises TrainingError if the data has changed or fewer epochs
        are asked for than there were."""
        if any(saved.split.get(key) != self.split[key] for key in _SAME):
            raise TrainingError(
                f"--data {self.config.data} has changed since this run began: its rows or their "
                "split are not the checkpoint's. Begin a new run with another --out."
            )
        if self.config.epochs < len(saved.history):
            raise TrainingError(
                f"--epochs {self.config.epochs}: this run already has {len(saved.history)}; "
                "ask for more, or leave it out."
            )
        self.evaluated.load_state_dict(saved.weights)
        self.model.load_state_dict(saved.trained or saved.weights)
        self.optimiser.load_state_dict(saved.optimiser)
        self.recorder = self._recorder()  # the optimiser's tensors are new ones
        self.order.set_state(saved.generators["order"])
        self.history = list(saved.history)
        self._begin()
        if saved.epoch:
            self.step_number = saved.epoch["steps"]
            self.sums.copy_(saved.epoch["sums"])
            self.seconds = saved.epoch["seconds"]
            self.cpu_seconds = saved.epoch["cpu_seconds"]
        if saved.config.device == self.device.type:
            self.noise.set_state(saved.generators["noise"])
        else:
            # Not --seed alone, which would repeat the noise that the run began with.
            seeds = np.random.SeedSequence((self.config.seed, self.done))
            self.noise.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))


class _Clock:
    """Adds the time since the last tick to the run's."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.run.seconds += wall - self.wall
        self.run.cpu_seconds += cpu - self.cpu
        self.wall, self.cpu = wall, cpu


@torch.no_grad()
def evaluate(model: Model, x: Tensor, seed: int) -> dict[str, float]:
    """Averages over rows (rows, *shape) of elbo, distortion and rate, in nats per example.

    The draws are the same for each call, so that epochs differ by their weights only.
    """
    noise = torch.Generator(x.device).manual_seed(seed)
    parts = torch.split(x, data.together(x.shape[1:], _EVALUATION_ROWS))
    batches = [torch.stack(model(part, noise)) for part in parts]
    means = torch.cat(batches, dim=1).double().mean(1)
    return dict(zip(Terms._fields, means.tolist(), strict=True))
