"""The training loop: run an epoch, validate, log, keep the best and the last checkpoint, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from latentd import __version__
from latentd.training import (
    augmentation,
    checkpoint,
    data,
    distributed,
    figures,
    machine,
    networks,
    threads,
    trackers,
    warm_start,
)
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.dataset import Dataset
from latentd.training.device import resolve_device, resolve_precision
from latentd.training.errors import TrainingError
from latentd.training.logger import RunLogger
from latentd.training.objective import describe_elbo, describe_objective
from latentd.training.signals import StopRequest, stop_request
from latentd.training.threads import Choice
from latentd.training.trainer import Trainer, evaluate

LAST: Final = "last.pt"  # the checkpoint that --resume continues
BEST: Final = "best.pt"  # the checkpoint with the highest validation ELBO

_FEW_STEPS: Final = (10, 1000)  # per epoch and per run: with fewer of both, a model learns little


def train(
    config: Config,
    out: Path,
    saved: Checkpoint | None = None,
    *,
    dataset: Dataset | None = None,
    stop: StopRequest | None = None,
    after_step: Callable[[], None] = lambda: None,
    after_epoch: Callable[[dict[str, Any]], None] = lambda line: None,
    evaluate_best: bool = True,
) -> None:
    """Train until `config.epochs` or until patience runs out. Starts from `saved` if given, and
    writes into the folder `out`.

    dataset: the config's rows, if they are loaded. stop: asks to stop, in place of signals.
    after_step, after_epoch: run when a step is done, and when an epoch is saved and logged. What
    they raise ends the run. evaluate_best: whether to look at the test rows and draw at the end.

    Standard output and log.jsonl get one JSON line for the run, one for each epoch and one for
    the test rows. The input is checked completely before `out` is created.
    """
    trackers.require(config.tracker)
    with _no_denormals(), distributed.processes(_device(config, saved)) as device:
        if dataset is None:
            dataset = data.load(config, out)
        config = _resolve_config(config, dataset, device)
        augmentation.check(config, dataset.spec.shape)
        chosen = _resolve_threads(config, dataset, device, saved)
        run = Trainer(dataclasses.replace(config, threads=chosen.number), dataset, device)
        if saved:
            _restore(run, saved, out)
            _notice_device_change(run, saved)
        else:
            run.fit_linear_path()
            if run.config.encoder_from:
                run.load_encoder(warm_start.encoder(run.config, dataset.spec))
        _warn_of_few_steps(run)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"--out {out} cannot be made: {error.strerror}.") from None
        header = _header(run) | {"threads": _threads_record(chosen)}
        with (
            threads.using(chosen.number),
            RunLogger(out, header, run.history, run.steps_done) as logger,
        ):
            with _stop_request() if stop is None else contextlib.nullcontext(stop) as request:
                _epochs(run, out, logger, request, after_step, after_epoch)
            if evaluate_best and distributed.is_main_process():
                _evaluate_best(run, out, logger)


@contextlib.contextmanager
def _no_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero inside the block. When gradients stop, Adam's averages decay
    into denormals, which are slow. The setting is the processor's and other code relies on it."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _stop_request() -> contextlib.AbstractContextManager[StopRequest]:
    """Of several processes none may leave between steps: the others would wait for its gradients.
    A signal ends them as torchrun expects."""
    if distributed.process_count() > 1:
        return contextlib.nullcontext(StopRequest())
    return stop_request()


def _epochs(
    run: Trainer,
    out: Path,
    logger: RunLogger,
    stop: StopRequest,
    also_after_step: Callable[[], None],
    after_epoch: Callable[[dict[str, Any]], None],
) -> None:
    """Run the remaining epochs. Saves and raises Stopped between two steps if asked to stop."""
    last_save = time.monotonic()
    warned = (
        run.device.type != "cpu" or distributed.process_count() > 1
    )  # a step may also wait for the GPU or for other processes

    def save(path: Path) -> None:
        nonlocal last_save
        if distributed.is_main_process():
            checkpoint.save(path, run.checkpoint())
        last_save = time.monotonic()

    def after_step() -> None:
        nonlocal warned
        logger.step()
        also_after_step()
        if not warned and (ratio := run.contention.found()):
            warned = True
            distributed.notice(_on_contention(run, ratio))
        if stop.number or time.monotonic() - last_save > run.config.checkpoint_seconds:
            save(out / LAST)
        stop.raise_if_made()

    while not finished(run.config, run.history):
        line = run.epoch(after_step)
        if line is best(run.history):
            save(out / BEST)
        save(out / LAST)
        logger.epoch(line)
        after_epoch(line)
        stop.raise_if_made()


def finished(config: Config, history: list[dict[str, Any]]) -> bool:
    """Whether every epoch is done or patience has run out."""
    if len(history) >= config.epochs:
        return True
    validated, chosen = _validated(history), best(history)
    # Epochs since the last validation have no ELBO yet.
    return bool(chosen and config.patience) and (
        validated[-1]["epoch"] - chosen["epoch"] >= config.patience  # type: ignore[index]
    )


def best(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first line with the highest validation ELBO: best.pt holds that epoch's weights."""
    return max(_validated(history), key=lambda line: line["validation_elbo"], default=None)


def _validated(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in history if "validation_elbo" in line]


def _evaluate_best(run: Trainer, out: Path, logger: RunLogger) -> None:
    """Draw the figures and evaluate the test rows with the best weights."""
    saved = checkpoint.load(out / BEST)
    model, test = saved.model(), run.dataset.test.x.cpu()
    figures.draw(out, model, test, run.history, run.config.seed)
    logger.log(
        {"best_epoch": saved.history[-1]["epoch"], "unit": "nats per example"}
        | {f"test_{term}": value for term, value in evaluate(model, test, run.config.seed).items()}
    )


def _header(run: Trainer) -> dict[str, Any]:
    return {
        "run": dataclasses.asdict(run.config),
        "elbo": describe_elbo(run.config, run.dataset.spec),
        "objective": describe_objective(run.config),
        "unit": "nats per example",
        "split": run.split,
        "steps": run.steps,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "device": str(run.device),
        "processes": distributed.process_count(),
        "versions": {
            "latentd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _resolve_config(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """The config with every `auto` resolved."""
    shape = dataset.spec.shape
    chosen = resolve_precision(config.precision, device)
    config = dataclasses.replace(config, device=device.type, precision=chosen)
    if config.is_text:
        config = dataclasses.replace(config, text_length=shape[0])
    return networks.resolve_architecture(config, shape, bool(dataset.columns))


def _device(config: Config, saved: Checkpoint | None) -> torch.device:
    """The device to run on. A resumed run keeps its kind unless --device names another."""
    try:
        return resolve_device(config.device)
    except TrainingError:
        if saved and saved.config.device == config.device:
            raise TrainingError(
                "This run is one of --device cuda and there is no CUDA device here; continue it "
                "where there is one, or here with --device cpu (its noise is then reseeded)."
            ) from None
        raise


def _restore(run: Trainer, saved: Checkpoint, out: Path) -> None:
    try:
        run.restore(saved)
    except (TrainingError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a foreign file's states can hold anything
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{out / LAST} is inconsistent ({why}); retrain.") from None


def _resolve_threads(
    config: Config, dataset: Dataset, device: torch.device, saved: Checkpoint | None
) -> Choice:
    """The number of CPU threads. A resumed run keeps its own, because others round differently."""
    cpus = machine.cpu_count()
    is_same = saved and (config.threads, device.type) == (saved.config.threads, saved.config.device)
    if config.threads and is_same:
        if config.threads <= cpus:
            return Choice(config.threads, "the checkpoint")
        distributed.notice(
            f"This run had {config.threads} CPU threads and there are {cpus} CPUs here; another "
            "number is chosen, with which its results may differ by rounding."
        )
    elif config.threads:
        if config.threads > cpus:
            distributed.notice(f"--threads {config.threads} is more than the {cpus} CPUs: slower.")
        return Choice(config.threads, "--threads")
    if threads.from_environment():
        return Choice(threads.default(), "the environment (OMP_NUM_THREADS)")
    if device.type != "cpu" or distributed.process_count() > 1:
        return Choice(threads.default(), "default")
    # A separate Trainer leaves the run's weights and generators unchanged. Compiling takes minutes.
    trial = Trainer(dataclasses.replace(config, compile=False), dataset, device)
    batch = dataset.train.x[: config.batch_size]
    return threads.measure(lambda: trial.step(batch))


def _threads_record(chosen: Choice) -> dict[str, Any]:
    record = {"number": chosen.number, "cpus": machine.cpu_count(), "chosen_by": chosen.by}
    return record | (
        {"step_milliseconds": dict(chosen.milliseconds)} if chosen.milliseconds else {}
    )


def _on_contention(run: Trainer, ratio: float) -> str:
    count = run.config.threads
    fewer = ", or resume with --threads 1." if count > 1 else "."
    return (
        f"Training waits for CPUs: a step takes {ratio:.1f} times as long as it computes, because "
        f"other work uses them ({machine.cpu_count()} CPUs, {count} threads). Stop it{fewer}"
    )


def _warn_of_few_steps(run: Trainer) -> None:
    steps, epochs = run.steps, run.config.epochs
    if steps < _FEW_STEPS[0] and steps * epochs < _FEW_STEPS[1]:
        distributed.notice(
            f"The run has {steps * epochs:,} steps, {steps} in an epoch, which are too few to "
            f"learn much. Use a smaller --batch-size (now {run.config.batch_size}), more --epochs "
            f"(now {epochs}), or more rows."
        )


def _notice_device_change(run: Trainer, saved: Checkpoint) -> None:
    if saved.config.device != run.device.type:
        distributed.notice(
            f"Resuming on {run.device.type} a run started on {saved.config.device}. The state of "
            f"its random generator cannot be carried over; noise is reseeded from --seed "
            f"{run.config.seed} and step {run.steps_done}."
        )
