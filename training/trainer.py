"""The trainer holds everything that changes between steps: model, optimizer and generators."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from latentd.training import augmentation, batch_order, distributed, schedules
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.cuda_graphs import CudaBackend, GraphedStep
from latentd.training.dataset import Dataset, max_batch_rows
from latentd.training.ema import EMA
from latentd.training.errors import RunFailed, TrainingError
from latentd.training.model import Model, Terms, build, encoder_of, normal
from latentd.training.networks.gru import drop_tokens, trim_padding
from latentd.training.objective import objective
from latentd.training.optimizer import Optimizer
from latentd.training.threads import Contention

_EVAL_BATCH_ROWS: Final = 1024  # upper limit of rows in one batch
_SUMS: Final = ("objective", *Terms._fields, "rows", "steps")  # summed over the epoch so far


_SPLIT_KEYS: Final = ("train", "validation", "test", "digest")  # must match on resume


class Trainer:
    """One run on one device. `checkpoint` and `restore` may be called between any two steps."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device, self.split = config, device, dataset.summary()
        self.dataset = dataset.to(device)
        self.model = build(config, dataset.spec).to(device)
        self.ema = EMA(self.model, config.ema_decay) if config.ema_decay else None
        self.forward, self.clip_and_check = self._forward, self._clip_and_check
        if config.compile:
            # Not dynamic: batches have at most two sizes. The code for a size must not depend on
            # which size came first, or a resumed run would end with different bits.
            self.forward = torch.compile(self._forward, dynamic=False)
            self.clip_and_check = torch.compile(self._clip_and_check, dynamic=False)
        self.parameters = list(self.model.parameters())
        self.optimizer = Optimizer(config.optimizer, self.model)
        # Two generators: the order of the rows must not depend on how much noise was drawn.
        self.order = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed)
        self.history: list[dict[str, Any]] = []
        self.steps = math.ceil(len(dataset.train) / config.batch_size)  # per epoch
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.graphed_step = self._make_graphed_step()
        self.contention = Contention()
        self._start_epoch()

    def _start_epoch(self) -> None:
        """Reset the state to the first step of the next epoch."""
        self.step_number = 0
        self.order_state = self.order.get_state()  # reproduces this epoch's order
        self.sums.zero_()  # in place: captured graphs add to them
        self.seconds = self.cpu_seconds = 0.0

    def _make_graphed_step(self) -> GraphedStep | None:
        """The graphed step. None if the host waits in a step: with Muon or several processes."""
        config = self.config
        if self.device.type != "cuda" or not config.compile:
            return None
        if config.optimizer != "adam" or distributed.process_count() > 1:
            return None
        return GraphedStep(self._train_step, CudaBackend(self.device))

    def fit_linear_path(self) -> None:
        """Start a new run from the best linear VAE of its training rows, if its model has one."""
        if self.config.linear_path == "pca":
            start = build(self.config, self.dataset.spec)
            if distributed.is_main_process():
                start.fit_linear_path(self.dataset.train.x.cpu(), self.config.seed)
            weights = distributed.broadcast(start.state_dict())
            for model in (self.model, self.eval_model):
                model.load_state_dict(weights)

    def load_encoder(self, encoder: Mapping[str, Tensor]) -> None:
        """Start a new run with the weights of a trained encoder: see `warm_start`."""
        for model in (self.model, self.eval_model):
            encoder_of(model).load_state_dict(encoder)

    @property
    def steps_done(self) -> int:
        """The number of steps so far, including skipped steps."""
        return len(self.history) * self.steps + self.step_number

    @property
    def eval_model(self) -> Model:
        """The model to validate and export: the average of the weights if there is one."""
        return self.ema.model if self.ema else self.model

    def epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Run the rest of the epoch. Returns its log line, with averages over rows.

        Calls `after_step` between steps. Skips and counts a step whose loss or gradient is not
        finite. Raises RunFailed if every step was skipped or the validation ELBO is not finite.
        """
        clock = _Clock(self)
        x, size = self.dataset.train.x, self.config.batch_size
        order = batch_order.draw(x, size, self.dataset.spec.text, self.order)
        order = order.to(self.device, non_blocking=True)
        for start in range(self.step_number * size, len(x), size):
            with self.contention:
                self.step(x.index_select(0, order[start : start + size]))
            clock.tick()
            after_step()
        line = self._log_line(len(self.history) + 1)
        clock.tick()
        line |= {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}
        self.history.append(line)
        self._start_epoch()
        return line

    def step(self, x: Tensor) -> None:
        """Maximize the objective on a batch (rows, *shape). Skips a step that is not finite."""
        rows, config, epoch = len(x), self.config, self.steps_done / self.steps
        x = augmentation.augment(x, config, self.noise)
        x = self.model.target(x, self.noise)
        if config.token_dropout:
            x = drop_tokens(x, config.token_dropout, self.noise)
        x = distributed.shard(x)
        if self.dataset.spec.text and self.device.type == "cpu":  # a GPU would wait for the length
            x = trim_padding(x)
        noise = distributed.shard(
            normal((config.importance_samples, rows, *self.model.latent_shape), self.noise), axis=1
        )
        weight, rate = schedules.kl_weight(config, epoch), schedules.learning_rate(config, epoch)
        ema_weight = self.ema.weight(self.steps_done) if self.ema else 0.0
        if self.graphed_step:
            self.graphed_step(rows, (x, noise), (weight, rate, ema_weight))
        else:
            # A tensor, because compiled code is valid for only one value of a Python number.
            # Filled on the device, because a copy from the host would wait for all queued GPU work.
            self._train_step(
                rows, x, noise, torch.full((), weight, device=self.device), rate, ema_weight
            )
        self.step_number += 1

    def _train_step(
        self,
        rows: int,
        x: Tensor,
        noise: Tensor,
        kl_weight: Tensor,
        learning_rate: float | Tensor,
        ema_weight: float | Tensor,
    ) -> None:
        """The part of a step that draws no random numbers, so GraphedStep can capture it.

        rows: the batch's rows over all processes. x: this process's target rows. noise: its
        (samples, rows, *latent_shape). kl_weight, learning_rate, ema_weight: from the schedules.
        """
        # Before the forward pass: a capture must not free the gradients of an earlier one.
        for parameter in self.parameters:
            parameter.grad = None
        objective_sum, sums = self.forward(x, noise, kl_weight)
        (-objective_sum / rows).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        distributed.all_reduce_([*gradients, sums])
        norm = torch.nn.utils.get_total_norm(gradients)
        shorter, finite = self.clip_and_check(sums, norm, self.sums)
        torch._foreach_mul_(gradients, shorter)
        self.optimizer.step(learning_rate, finite)
        if self.ema:
            self.ema.update(ema_weight)

    def _forward(self, x: Tensor, noise: Tensor, kl_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the rows: the objective, shape (), and all of _SUMS except steps."""
        config = self.config
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        ):
            draws = self.model.draw(x, noise)
        objective_sum = objective(self.model, draws, kl_weight, config.free_bits).sum()
        terms = [term.detach().sum() for term in self.model.terms(draws)]
        rows = objective_sum.new_full((), len(x))
        return objective_sum, torch.stack([objective_sum.detach(), *terms, rows])

    def _clip_and_check(self, sums: Tensor, norm: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Add a finite step's sums to the epoch's sums, `total`. Returns two tensors (): the factor
        that clips a gradient of this norm, and whether the step is finite."""
        finite = torch.isfinite(sums.sum() + norm)
        total += torch.where(finite, torch.cat((sums, torch.ones_like(sums[:1]))), 0.0)
        return (self.config.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0), finite

    def _log_line(self, number: int) -> dict[str, Any]:
        sums = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        last = (self.steps_done - 1) / self.steps  # position of the epoch's last step
        rows, skipped = sums.pop("rows"), self.steps - int(sums.pop("steps"))
        due = number % self.config.validate_every == 0 or number == self.config.epochs
        validation: dict[str, float] = {}
        if due:
            x, seed = self.dataset.validation.x, self.config.seed
            validation = distributed.broadcast(evaluate(self.eval_model, x, seed))
        if not rows or not all(map(math.isfinite, validation.values())):
            raise RunFailed(
                f"Training diverged in epoch {number}: {skipped} of {self.steps} steps were not "
                "finite. Try again with a smaller --learning-rate or --clip-grad-norm."
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
        """The current state, ready to be saved."""
        return Checkpoint(
            config=dataclasses.replace(self.config, device=self.device.type),
            spec=self.dataset.spec,
            weights=self.eval_model.state_dict(),
            raw_weights=self.model.state_dict() if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            generators={"order": self.order_state, "noise": self.noise.get_state()},
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
        """Continue from `saved` as if the run had not stopped. On another kind of device this
        reseeds the noise, because generators differ. Raises TrainingError if the data has changed,
        or if config.epochs is smaller than the number of finished epochs."""
        if any(saved.split.get(key) != self.split[key] for key in _SPLIT_KEYS):
            raise TrainingError(
                f"--data {self.config.data} has changed since this run began: its rows or their "
                "split are not the checkpoint's. Begin a new run with another --out."
            )
        if self.config.epochs < len(saved.history):
            raise TrainingError(
                f"--epochs {self.config.epochs}: this run already has {len(saved.history)}; "
                "ask for more, or leave it out."
            )
        self.eval_model.load_state_dict(saved.weights)
        self.model.load_state_dict(saved.raw_weights or saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        self.graphed_step = self._make_graphed_step()  # the optimizer has new tensors
        self.order.set_state(saved.generators["order"])
        self.history = list(saved.history)
        self._start_epoch()
        if saved.epoch:
            self.step_number = saved.epoch["steps"]
            self.sums.copy_(saved.epoch["sums"])
            self.seconds = saved.epoch["seconds"]
            self.cpu_seconds = saved.epoch["cpu_seconds"]
        if saved.config.device == self.device.type:
            self.noise.set_state(saved.generators["noise"])
        else:
            # --seed alone would repeat the noise from the start of the run.
            seeds = np.random.SeedSequence((self.config.seed, self.steps_done))
            self.noise.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))


class _Clock:
    """Adds the time since the last tick to the run's time."""

    def __init__(self, run: Trainer) -> None:
        self.run = run
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.run.seconds += wall - self.wall
        self.run.cpu_seconds += cpu - self.cpu
        self.wall, self.cpu = wall, cpu


@torch.no_grad()
def evaluate(model: Model, x: Tensor, seed: int) -> dict[str, float]:
    """The averages of elbo, distortion and rate over rows (rows, *shape), in nats per example.

    Every call uses the same noise, so epochs differ only by their weights.
    """
    noise = torch.Generator(x.device).manual_seed(seed)
    parts = torch.split(x, max_batch_rows(model.output_shape, _EVAL_BATCH_ROWS))
    batches = [torch.stack(model(part, noise)) for part in parts]
    means = torch.cat(batches, dim=1).double().mean(1)
    return dict(zip(Terms._fields, means.tolist(), strict=True))
