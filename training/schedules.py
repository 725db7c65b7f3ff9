"""Schedules of settings over a run. Each is a function of the run's position, so a resumed run
needs only its position."""

from __future__ import annotations

import math

from latentd.training.config import Config

_RISE = 0.3  # one-cycle: the rising part of the run (Smith and Topin, 2018, arXiv:1708.07120)
_START = 0.04  # one-cycle: the first learning rate, as a part of the highest


def learning_rate(config: Config, epoch: float) -> float:
    """The step size after `epoch` of `config.epochs` epochs. `epoch` may be fractional."""
    done = min(1.0, epoch / config.epochs)
    factor = 1.0
    if config.lr_schedule == "cosine":
        factor = _cosine(1, 0, done)
    elif config.lr_schedule == "one-cycle":
        rising = done < _RISE
        factor = (
            _cosine(_START, 1, done / _RISE)
            if rising
            else _cosine(1, 0, (done - _RISE) / (1 - _RISE))
        )
    return config.learning_rate * factor * _ramp(epoch, config.lr_warmup_epochs)


def kl_weight(config: Config, epoch: float) -> float:
    """The weight of the KL after `epoch` epochs: beta, or less during warmup.

    Cycles follow Fu et al. (2019), arXiv:1903.10145: rising in the first half, beta in the second.
    """
    if config.kl_cycles:
        cycle = config.epochs / config.kl_cycles
        return config.beta * _ramp(epoch % cycle, cycle / 2)
    return config.beta * _ramp(epoch, config.kl_warmup_epochs)


def _ramp(epoch: float, length: float) -> float:
    """A ramp from 0 to 1 in `length` epochs. A length of 0 gives 1."""
    return min(1.0, epoch / length) if length else 1.0


def _cosine(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` to `end`, while `done` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
