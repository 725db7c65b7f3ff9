"""tuning.png: the ELBO of each trial in order, and against each searched setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

# The object interface needs neither a display nor pyplot's global state.
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from latentd.training.config import flag
from latentd.training.tuning.study import TrialStudy, best_of, collapsed, elbo, measured

FILE: Final = "tuning.png"
_COLUMNS: Final = 3
_SHOWN: Final = 3.0  # times the distance from the best to the median; worse trials lie at the edge
_STYLES: Final = {
    "finished": {"marker": "o", "color": "C0"},
    "pruned": {"marker": "x", "color": "C7"},
    "unfinished": {"marker": "s", "color": "C2"},
    "collapsed": {"marker": "v", "color": "C3"},
}
_STATES: Final = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}


def draw(study: TrialStudy, trials: Sequence[FrozenTrial]) -> None:
    """Write the picture. Nothing is written if no trial has an ELBO."""
    shown = [trial for trial in trials if elbo(trial) is not None]
    if not shown:
        return
    names = list(study.space.distributions)
    lines = math.ceil((1 + len(names)) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, _COLUMNS, sharey=True, squeeze=False)
    history, *others = grid.flat
    history.set_ylim(*_limits(shown))
    history.plot(*_best_so_far(shown), color="C1", label="best so far", drawstyle="steps-post")
    _points(history, [trial.number for trial in shown], shown)
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    if failed:
        edge = [history.get_ylim()[0]] * len(failed)
        history.plot(failed, edge, "*", color="C3", label="failed", clip_on=False)
    history.set(title="trials in order", xlabel="trial")
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.legend(fontsize=8)
    shares = study.importances()
    for axes, name in zip(others, names, strict=False):
        _against(axes, name, study, shown)
        share = f" ({shares[name]:.0%} of the differences)" if name in shares else ""
        axes.set_title(flag(name).removeprefix("--") + share)
    for axes in others[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation ELBO, nats a row")
    figure.savefig(study.out / FILE, dpi=100)


def _against(axes: Any, name: str, study: TrialStudy, trials: Sequence[FrozenTrial]) -> None:
    """Draw the ELBO against one setting."""
    values: list[Any] = [getattr(study.settings(trial), name) for trial in trials]
    distribution = study.space.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        values = [choices.index(value) for value in values]
        axes.set_xticks(range(len(choices)), map(str, choices))
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif isinstance(distribution, IntDistribution | FloatDistribution):
        if distribution.log:
            _logarithmic(axes)
        if distribution.low < distribution.high:
            axes.set_xlim(distribution.low, distribution.high)
    _points(axes, values, trials)


def _logarithmic(axes: Any) -> None:
    """Use a log scale with plain numbers: 0.002, not 2 x 10^-3."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _points(axes: Any, values: Sequence[float], trials: Sequence[FrozenTrial]) -> None:
    """Draw one mark for each trial. The best is circled; what is too low lies at the edge."""
    low = axes.get_ylim()[0]
    places = [(x, max(_elbo(trial), low)) for x, trial in zip(values, trials, strict=True)]
    for kind, style in _STYLES.items():
        chosen = [place for place, t in zip(places, trials, strict=True) if _kind(t) == kind]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), linestyle="", label=kind, clip_on=False, **style)
    if best := best_of(trials):
        x, y = places[[trial.number for trial in trials].index(best.number)]
        axes.plot([x], [y], "o", markersize=12, fillstyle="none", color="C1", clip_on=False)


def _kind(trial: FrozenTrial) -> str:
    return "collapsed" if collapsed(trial) else _STATES.get(trial.state, "unfinished")


def _best_so_far(trials: Sequence[FrozenTrial]) -> tuple[list[int], list[float]]:
    """The best ELBO after each trial, of those that have not collapsed."""
    numbers, values = list[int](), list[float]()
    for trial in trials:
        if measured(trial).get("active_units"):
            numbers.append(trial.number)
            values.append(max([*values[-1:], _elbo(trial)]))
    return numbers, values


def _limits(trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """The range of the ELBO that is drawn: a bad trial must not squeeze the good ones."""
    values = [_elbo(trial) for trial in trials]
    high = max(values)
    low = max(min(values), high - _SHOWN * (high - statistics.median(values)))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _elbo(trial: FrozenTrial) -> float:
    value = elbo(trial)
    assert value is not None, "only trials with an ELBO are drawn"
    return value
