"""The record of all trials, shared by every process that works on it: an Optuna study in SQLite.

OUT/study.db        the study; `optuna-dashboard sqlite:///OUT/study.db` shows it too
    .lock           held while a process claims or finishes a trial
    trials/0003/    the run of a trial; `.lock` in it is held by the process that works on it

A trial whose process has ended, however that came, is free again, and continues where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from latentd.training.config import Config, flag
from latentd.training.errors import TrainingError
from latentd.training.files import printable
from latentd.training.train import BEST, LAST
from latentd.training.tuning.space import Space

DATABASE: Final = "study.db"
_NAME: Final = "latentd tune"
_LOCK: Final = ".lock"
_FREE: Final = ("checkpoint_seconds", "tracker", "device", "threads")
"""Settings that may differ from one command to the next."""
_LOCK_SECONDS: Final = 120  # SQLite's limit to wait for another process
_STARTUP_TRIALS: Final = 5  # complete trials before one is pruned
_IMPORTANT: Final = 10  # trials: fewer say nothing about the importance of a setting
_ENDED: Final = 3  # a trial that ended its process this often, without a word, is not tried again
_STARTS: Final = "starts"  # how often a trial was begun or continued since its last clean stop
MEASURED: Final = "measured"  # what the best weights of a trial are like

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A trial that this process works on."""

    trial: Trial
    folder: Path  # of its run
    lock: IO[str]  # held while it is open
    reported: Collection[int] = ()  # epochs whose ELBO is recorded


class TrialStudy:
    """The study in a folder. It is made if there is none."""

    def __init__(self, out: Path, config: Config, space: Space, rows: str) -> None:
        """rows: the digest of the data. Raises TrainingError if the folder holds a study of other
        settings or rows, or cannot be used."""
        self.out, self.config, self.space = out, config, space
        if (out / LAST).exists():
            raise TrainingError(f"{out} holds a run of `latentd train`; choose another --out.")
        try:
            (out / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"--out {out} cannot be made: {error.strerror}.") from None
        with self.locked():
            self._study = self._open()
            self._require_same(rows)

    def trials(self) -> list[FrozenTrial]:
        """Every trial that has begun, in order."""
        return [trial for trial in self._study.get_trials() if trial.state != TrialState.WAITING]

    def folder(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.out / "trials" / f"{number:04}"

    def settings(self, trial: FrozenTrial | Trial) -> Config:
        """The config of a trial's run."""
        return self.space.settings(self.config, trial.params)

    def claim(self, limit: int | None) -> Claimed | None:
        """A trial that no process works on: one that was stopped, or a new one. None if there are
        `limit` trials and all are finished or worked on."""
        with self.locked():
            trials = self.trials()
            for found in trials:
                if found.state == TrialState.RUNNING and (claimed := self._claim_stopped(found)):
                    return claimed
            if limit is not None and len(trials) >= limit:
                return None
            # Seeded by the trial's number: a study gives the same trials, however often it was
            # stopped, and two processes never begin with the same ones.
            seeds = np.random.SeedSequence((self.config.seed, len(trials)))
            self._study.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]))
            trial = self._study.ask(dict(self.space.distributions))
            lock = self._lock_trial(trial.number)
            assert lock is not None, "only this process knows the new trial"
            trial.set_user_attr(_STARTS, 1)
            return Claimed(trial, self.folder(trial.number), lock)

    def finish(self, claimed: Claimed, state: TrialState, value: float | None = None) -> None:
        """Record a trial's end. Of all finished trials only the best keeps its checkpoints."""
        with self.locked():
            self._study.tell(claimed.trial, value, state)
            finished = [trial for trial in self.trials() if trial.state.is_finished()]
            best = best_of(finished)
            for trial in finished:
                if best is None or trial.number != best.number:
                    for name in (LAST, BEST):
                        (self.folder(trial.number) / name).unlink(missing_ok=True)
            (claimed.folder / _LOCK).unlink()
            claimed.lock.close()

    def release(self, claimed: Claimed) -> None:
        """Let another process, or the next command, continue the trial."""
        claimed.trial.set_user_attr(_STARTS, 0)
        claimed.lock.close()

    def importances(self) -> dict[str, float]:
        """Which part of the differences among finished trials each searched setting explains, by
        PED-ANOVA. Empty if there are too few trials."""
        finished = self._study.get_trials(states=(TrialState.COMPLETE,))
        if len(finished) < _IMPORTANT or len({trial.value for trial in finished}) == 1:
            return {}
        return optuna.importance.get_param_importances(self._study)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block, no other process claims or finishes a trial."""
        with (self.out / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open(self) -> Study:
        path = self.out / DATABASE
        config = self.config
        warmup = max(2, math.ceil(config.epochs / 5), math.ceil(config.kl_warmup_epochs))
        try:
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}",
                engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}},
            )
            return optuna.create_study(
                storage=storage,
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(_STARTUP_TRIALS, n_warmup_steps=warmup),
            )
        except (SQLAlchemyError, RuntimeError, optuna.exceptions.OptunaError) as error:
            why = str(error).splitlines()[0]
            raise TrainingError(
                f"{printable(path)} cannot be used as a study ({why}). Choose another --out."
            ) from None

    def _require_same(self, rows: str) -> None:
        """Raise TrainingError unless the study is of these settings. Writes them into a new one."""
        fixed: dict[str, Any] = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if name not in _FREE and name not in self.space.distributions
        }
        now = fixed | {name: f"searched in {words}" for name, words in self.space.words().items()}
        found = self._study.user_attrs
        if not found:
            if self.space.start:
                self._study.enqueue_trial(dict(self.space.start))  # to see what the search gains
            self._study.set_user_attr("made of", {"settings": now, "rows": rows})
            return
        then = found["made of"]["settings"]
        for name in then | now:
            if then.get(name) != now.get(name):
                raise TrainingError(
                    f"{flag(name)} is {then.get(name)} in {self.out} and {now.get(name)} here. A "
                    "search goes on with the same settings: repeat them, or choose another --out. "
                    f"({', '.join(map(flag, _FREE))} may differ.)"
                )
        if rows != found["made of"]["rows"]:
            raise TrainingError(
                f"--data {self.config.data} has changed since the search in {self.out} began, so "
                "its trials cannot be compared with new ones. Choose another --out."
            )

    def _claim_stopped(self, found: FrozenTrial) -> Claimed | None:
        """The trial again, if its process has ended. A trial that ends its process every time, for
        instance for want of memory, is recorded as failed."""
        if not (lock := self._lock_trial(found.number)):
            return None
        trial = Trial(self._study, found._trial_id)
        starts = found.user_attrs.get(_STARTS, 0)
        if starts >= _ENDED:
            trial.set_user_attr("error", f"it ended its process {starts} times")
            self._study.tell(trial, state=TrialState.FAIL)
            lock.close()
            return None
        trial.set_user_attr(_STARTS, starts + 1)
        reported = found.intermediate_values.keys()
        return Claimed(trial, self.folder(found.number), lock, reported)

    def _lock_trial(self, number: int) -> IO[str] | None:
        """The trial's lock, held while it is open. None if another process holds it."""
        folder = self.folder(number)
        folder.mkdir(exist_ok=True)
        lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock


def collapsed(trial: FrozenTrial) -> bool:
    """Whether a whole run has left no latent active. Early in a run none need be."""
    return trial.state == TrialState.COMPLETE and measured(trial).get("active_units") == 0


def measured(trial: FrozenTrial) -> dict[str, Any]:
    """rate, active_units, best_epoch, epochs, seconds, threads. Empty before the first epoch ends,
    and for a trial that another process works on."""
    found: dict[str, Any] = trial.user_attrs.get(MEASURED, {})
    return found


def elbo(trial: FrozenTrial) -> float | None:
    """The trial's highest validation ELBO, whose weights are in best.pt. None if it failed or has
    none yet."""
    if trial.state == TrialState.FAIL:
        return None
    return max(trial.intermediate_values.values(), default=None)


def best_of(trials: Iterable[FrozenTrial], active: bool = True) -> FrozenTrial | None:
    """The trial with the highest ELBO. It may be pruned or stopped, because its best epoch counts.

    active: only of those with active latents, as measured
    """
    wanted = [t for t in trials if not active or measured(t).get("active_units")]
    found = [(elbo(t), -t.number, t) for t in wanted]
    return max(((a, b, t) for a, b, t in found if a is not None), default=(None, 0, None))[2]
