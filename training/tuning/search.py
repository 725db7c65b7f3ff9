"""The loop of a search: claim a trial, run it, record it, until the time is over."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import optuna
import torch.distributed as dist
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from latentd.training import data
from latentd.training.config import Config, flag
from latentd.training.distributed import notice
from latentd.training.errors import RunFailed, TrainingError
from latentd.training.files import printable
from latentd.training.objective import describe_elbo
from latentd.training.signals import Stopped, stop_request
from latentd.training.tuning import figure, report, space, trial
from latentd.training.tuning.study import DATABASE, Claimed, TrialStudy, best_of, elbo

_FAILURES: Final = 5  # without any success: then the search ends
_FEW: Final = 5  # trials that should fit into the budget at least


@dataclass(frozen=True)
class Plan:
    """The options of `tune`."""

    config: Config  # the settings that flags fix, and the defaults
    given: Collection[str]  # settings with a flag of their own
    wanted: Sequence[str]  # the texts of --search
    out: Path
    minutes: float | None  # of this command
    trials: int | None  # of the study; minutes or trials must be given


def search(plan: Plan) -> None:
    """Run trials until the budget is spent, then write what was found.

    Raises TrainingError if the search cannot begin, RunFailed if no trial is of use, and Stopped,
    after writing what was found, if a signal ended it."""
    if dist.is_torchelastic_launched():
        raise TrainingError(
            "`tune` does not run under torchrun. For several trials at a time, start the command "
            "several times with the same --out."
        )
    if plan.config.model == "ae":
        raise TrainingError("--model ae has no ELBO, by which trials are compared; leave it out.")
    space.check(plan.config, plan.wanted)  # before pictures are decoded, which may take long
    dataset = data.load(plan.config, plan.out)
    spec = dataset.spec
    searched = space.space(plan.config, plan.given, plan.wanted, spec.shape, bool(spec.columns))
    study = TrialStudy(plan.out, plan.config, searched, dataset.digest)
    for name, words in searched.words().items():
        notice(f"searched: {flag(name)} in {words}")
    elbo = describe_elbo(plan.config, spec)
    notice(
        f"compared by: the highest validation ELBO of a trial ({elbo}), in which the KL "
        "has weight 1, whatever --beta is"
    )
    seconds = None if plan.minutes is None else 60 * plan.minutes
    stopped: Stopped | None = None
    try:
        with (
            stop_request(math.inf if seconds is None else seconds) as stop,
            Progress(plan, study, seconds) as progress,
        ):
            while not stop.number and (claimed := study.claim(plan.trials)):
                progress.begin(claimed)
                with claimed.lock:
                    trial.run(study, claimed, dataset, stop, progress.step, progress.epoch)
                progress.end()
                _require_success(study)
    except Stopped as error:
        stopped = error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise RunFailed(
            f"{printable(plan.out / DATABASE)} cannot be used any more: "
            f"{str(error).splitlines()[0]}"
        ) from None
    interrupted = stopped and stopped.number != signal.SIGALRM
    with study.locked():
        trials = study.trials()
        best = best_of(trials)
        if best and best.state == TrialState.COMPLETE and not interrupted:
            trial.complete(study.folder(best.number), dataset)
    report.write(study, trials)
    figure.draw(study, trials)
    print(report.format_report(study, trials))
    if stopped and interrupted:
        raise stopped
    if best is None and best_of(trials, active=False) is not None:
        raise RunFailed(report.ALL_COLLAPSED)


def _require_success(study: TrialStudy) -> None:
    """Raise RunFailed if every one of several trials has failed: more would fail alike."""
    trials = [found for found in study.trials() if found.state.is_finished()]
    if len(trials) >= _FAILURES and all(elbo(found) is None for found in trials):
        raise RunFailed(
            f"All {len(trials)} trials have failed. The last one: "
            f"{trials[-1].user_attrs.get('error')}"
        )


class Progress:
    """A bar with the time left, a line for each finished trial, and the running trial's state."""

    def __init__(self, plan: Plan, study: TrialStudy, seconds: float | None) -> None:
        self._plan, self._study, self._seconds = plan, study, seconds
        self._began, self._number, self._warned = time.monotonic(), 0, seconds is None

    def __enter__(self) -> Self:
        common: dict[str, Any] = {"desc": "tuning", "mininterval": 0.5, "disable": None}
        if self._seconds is None:
            done = sum(found.state.is_finished() for found in self._study.trials())
            self._bar = tqdm(total=self._plan.trials, initial=done, unit="trial", **common)
        else:
            words = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
            self._bar = tqdm(total=self._seconds, bar_format=words, **common)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def begin(self, claimed: Claimed) -> None:
        """A trial begins, or continues."""
        self._number = claimed.trial.number

    def step(self) -> None:
        """A step of a trial is done."""
        if self._seconds is not None:
            spent = min(time.monotonic() - self._began, self._seconds)
            self._bar.update(spent - self._bar.n)

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch of a trial is done."""
        epochs = self._plan.config.epochs
        if not self._warned and line["epoch"] > 1:  # the first one takes longer
            self._warned = True
            self._warn_of_few_trials(line["seconds"] * epochs)
        words = f"trial {self._number}, epoch {line['epoch']} of {epochs}"
        self._bar.set_postfix_str(words, refresh=False)

    def end(self) -> None:
        """The trial is finished."""
        trials = self._study.trials()
        line = report.format_line(self._study, trials, self._number)
        tqdm.write(line, file=sys.stderr)
        if self._seconds is None:
            self._bar.update(sum(found.state.is_finished() for found in trials) - self._bar.n)

    def _warn_of_few_trials(self, seconds: float) -> None:
        assert self._seconds is not None, "only a search of limited time"
        if seconds * _FEW > self._seconds:
            tqdm.write(
                f"A trial takes about {seconds / 60:.1f} minutes, so few fit into --budget "
                f"{self._plan.minutes:g}. Use fewer --epochs (now {self._plan.config.epochs}), or "
                "a larger --budget.",
                file=sys.stderr,
            )
