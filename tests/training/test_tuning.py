"""The parts of a search: what is searched, who works on which trial, and which one is best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from latentd.training.config import Config
from latentd.training.config_flags import to_flags
from latentd.training.errors import TrainingError
from latentd.training.networks import resolve_architecture
from latentd.training.signals import StopRequest
from latentd.training.tuning.space import Space, space
from latentd.training.tuning.study import MEASURED, TrialStudy, best_of

SHAPE = (8, 8)


def words(
    config: Config | None = None, given: tuple[str, ...] = (), *wanted: str
) -> dict[str, str]:
    return space(config or Config(), given, wanted, SHAPE).words()


def test_usual_settings_are_searched_unless_flags_fix_them() -> None:
    assert words() == {
        "latent_size": "4:64:log",
        "hidden_size": "64:512:log",
        "learning_rate": "0.0003:0.01:log",
        "beta": "0.5:2.0:log",
    }
    gated = dataclasses.replace(Config(), architecture="gated", importance_samples=5)
    assert words(gated, ("latent_size",)) == {
        "hidden_size": "75:600:log",
        "learning_rate": "0.0003:0.01:log",
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "4,8,16,32,64"),
        ({"stochastic_layers": 1}, "4:64:log"),
        ({"latents": "spatial", "depth": 2}, "8,16"),
        ({"latents": "spatial", "stochastic_layers": 3, "latent_size": 48}, "48:48"),
    ],
)
def test_sizes_of_a_ladder_can_be_divided_among_its_levels(
    settings: dict[str, Any], found: str
) -> None:
    config = Config(architecture="ladder", **settings)
    searched = space(config, (), (), (32, 32))
    assert searched.words()["latent_size"] == found
    sizes = [int(size) for size in found.removesuffix(":log").replace(":", ",").split(",")]
    for size in sizes:
        resolve_architecture(searched.settings(config, {"latent_size": size}), (32, 32))


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("batch-size=64,128", "batch_size", "64,128"),
        ("--batch_size=64:128", "batch_size", "64:128"),
        ("depth=1:4:log", "depth", "1:4:log"),
        ("ema-decay=0,0.99", "ema_decay", "0.0,0.99"),
        ("augment-flip=true,false", "augment_flip", "True,False"),
        ("optimizer=adam,muon", "optimizer", "adam,muon"),
        ("latent-size=2:8", "latent_size", "2:8"),
    ],
)
def test_search_takes_ranges_and_choices_of_any_setting(text: str, name: str, found: str) -> None:
    assert words(None, (), text)[name] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent-size", "write NAME=LOW:HIGH"),
        ("latents-size=1:2", "write NAME=LOW:HIGH"),
        ("latent-size=8", "that is one value"),
        ("latent-size=8,8", "a value is given twice"),
        ("latent-size=8:four", "'four' is not of type int"),
        ("latent-size=1.5:8", "'1.5' is not of type int"),
        ("latent-size=9:8", "9 is more than 8"),
        ("latent-size=0:8", "--latent-size must be at least 1, not 0."),
        ("latent-size=1:8:linear", "write LOW:HIGH or LOW:HIGH:log"),
        ("learning-rate=nan:1", "nan is more than 1.0"),
        ("learning-rate=0.1:inf", "must be a finite number"),
        ("ema-decay=0:0.9:log", "a log scale begins above 0"),
        ("optimizer=adam:muon", "write LOW:HIGH or LOW:HIGH:log for numbers"),
        ("optimizer=adam,sgd", "--optimizer is one of adam, muon"),
        ("augment-flip=yes,no", "'yes' is neither true nor false"),
        ("data=digits,idx:mnist", "which rows the ELBO is measured on"),
        ("min-std=0.01:0.2", "what the ELBO is measured of"),
        ("importance-samples=1,50", "another bound than the ELBO"),
        ("epochs=1:9", "epoch by epoch"),
        ("threads=1,2", "not the model. Fix it with --threads instead"),
        ("batch-size=1:9", "--batch-size fixes it"),
    ],
)
def test_wrong_search_is_refused_with_a_message(text: str, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        words(None, ("batch_size",), text)
    assert str(caught.value).startswith(f"--search {text}: ")
    assert message in str(caught.value)


def test_fixing_everything_leaves_nothing_to_search() -> None:
    with pytest.raises(TrainingError, match="nothing to search"):
        words(None, ("latent_size", "hidden_size", "learning_rate", "beta"))


def test_setting_is_not_searched_twice() -> None:
    with pytest.raises(TrainingError, match="depth is searched twice"):
        words(None, (), "depth=1:2", "depth=1:3")


def test_searched_numbers_are_short_and_stay_in_range() -> None:
    found = space(Config(), (), ["learning-rate=0.0012345:0.01"], SHAPE)
    assert found.settings(Config(), {"learning_rate": 0.00345678}).learning_rate == 0.00346
    assert found.settings(Config(), {"learning_rate": 0.0012346}).learning_rate == 0.0012345


def test_start_is_what_train_would_use_if_it_is_in_range() -> None:
    assert space(Config(), (), (), SHAPE).start == {
        "latent_size": 16,
        "hidden_size": 256,
        "learning_rate": 0.002,
        "beta": 1.0,
    }
    assert space(Config(), (), ["latent-size=20:30"], SHAPE).start is None


def test_flags_give_the_config_again() -> None:
    config = Config(data="idx:x", augment_flip=True, learning_rate=1e-05, hidden_size=7)
    assert to_flags(config) == [
        *("--data", "idx:x", "--augment-flip", "--hidden-size", "7", "--learning-rate", "1e-05")
    ]
    assert to_flags(Config()) == ["--data", Config().data]


def test_request_is_made_when_its_time_is_over() -> None:
    assert StopRequest().number is None
    assert StopRequest(0).number is not None


@pytest.fixture
def searched() -> Space:
    return space(Config(), (), (), SHAPE)


def make(out: Path, searched: Space) -> TrialStudy:
    return TrialStudy(out, Config(), searched, "digest")


def test_trial_of_a_process_that_has_ended_is_claimed_again(
    tmp_path: Path, searched: Space
) -> None:
    here, there = make(tmp_path, searched), make(tmp_path, searched)
    first, second = here.claim(2), there.claim(2)
    assert first
    assert second
    assert (first.trial.number, second.trial.number) == (0, 1)
    assert first.trial.params != second.trial.params
    assert here.claim(2) is None  # both are worked on
    first.lock.close()  # as the kernel does when a process ends
    again = there.claim(2)
    assert again
    assert (again.trial.number, again.trial.params) == (0, first.trial.params)
    assert there.claim(2) is None
    there.finish(again, TrialState.COMPLETE, 1.0)
    there.finish(second, TrialState.FAIL)
    assert here.claim(2) is None
    third = here.claim(3)
    assert third
    assert third.trial.number == 2
    assert third.trial.params != second.trial.params
    here.release(third)


def test_trial_that_ends_its_process_every_time_is_given_up(
    tmp_path: Path, searched: Space
) -> None:
    study = make(tmp_path, searched)
    for _ in range(3):
        claimed = study.claim(None)
        assert claimed
        assert claimed.trial.number == 0
        claimed.lock.close()
    claimed = study.claim(None)
    assert claimed
    assert claimed.trial.number == 1
    study.release(claimed)
    given_up = study.trials()[0]
    assert given_up.state == TrialState.FAIL
    assert given_up.user_attrs["error"] == "it ended its process 3 times"


def test_trial_that_was_stopped_may_be_stopped_again(tmp_path: Path, searched: Space) -> None:
    study = make(tmp_path, searched)
    for _ in range(5):
        claimed = study.claim(None)
        assert claimed
        assert claimed.trial.number == 0
        study.release(claimed)


def test_best_trial_has_active_latents() -> None:
    def trial(state: TrialState, units: int | None, *elbos: float) -> optuna.trial.FrozenTrial:
        found = optuna.trial.create_trial(
            state=state,
            value=elbos[-1] if state == TrialState.COMPLETE else None,
            intermediate_values=dict(enumerate(elbos, 1)),
            user_attrs={} if units is None else {MEASURED: {"active_units": units}},
        )
        found.number = len(trials)
        trials.append(found)
        return found

    trials = list[optuna.trial.FrozenTrial]()
    trial(TrialState.COMPLETE, 0, -1.0)  # collapsed
    assert best_of(trials) is None
    trial(TrialState.FAIL, 3, -0.5)
    trial(TrialState.RUNNING, None, -0.1)  # not measured yet
    assert best_of(trials) is None
    good = trial(TrialState.COMPLETE, 3, -3.0, -5.0)
    assert best_of(trials) is good
    pruned = trial(TrialState.PRUNED, 2, -2.0, -4.0)
    assert best_of(trials) is pruned
    assert best_of(trials, active=False) is trials[2]
