"""The autoscalers of the manifests on six hours of traffic: neither do they flap nor starve."""

from __future__ import annotations

import itertools
from dataclasses import replace

import fleet
import pytest
from autoscaler import SYNC_SECONDS, Autoscaler, Rules, Target, of_autoscaler, of_scaled_object

READ = {"autoscaling": of_autoscaler, "autoscaling-keda": of_scaled_object}
KINDS = {"autoscaling": "HorizontalPodAutoscaler", "autoscaling-keda": "ScaledObject"}


@pytest.fixture(scope="session")
def rules(build):
    """The rules in a component, by its name."""

    def rules(component: str) -> Rules:
        documents = build("cpu", [component])
        return READ[component](next(d for d in documents if d["kind"] == KINDS[component]))

    return rules


@pytest.fixture(scope="session")
def age(build) -> float:
    """Seconds of a connection: how long until callers have found a new pod."""
    settings = next(
        d["data"]
        for d in build("cpu")
        if d["kind"] == "ConfigMap" and "LATENTD_PORT" in d.get("data", {})
    )
    return float(settings["LATENTD_MAX_CONNECTION_AGE_SECONDS"])


@pytest.mark.parametrize("component", READ)
def test_it_neither_flaps_nor_starves(rules, age, component):
    traffic = fleet.read_traffic()
    run = fleet.run(rules(component), traffic, age)
    # A day's rise and fall and two rushes are five turns; the rest is noise.
    assert run.turns <= 10
    assert run.regrets(900) <= 4
    assert run.shed_share < 0.001
    longest = max(len(list(g)) for shed, g in itertools.groupby(run.shed, bool) if shed)
    assert longest < 60, "callers are refused until the new pods have their share"
    needed = sum(traffic) / len(traffic) / fleet.CAPACITY / 0.6
    assert sum(run.replicas) / len(run.replicas) < 1.25 * needed


def test_by_the_queue_alone_it_would_flap(rules, age):
    told = rules("autoscaling")
    (queue,) = [target for target in told.targets if target.metric == "latentd_queue_rows"]
    run = fleet.run(replace(told, targets=(queue,)), fleet.read_traffic(), age)
    assert run.regrets(900) > 20
    assert run.shed_share > 0.005


def test_both_autoscalers_aim_at_the_same(rules):
    one, other = rules("autoscaling"), rules("autoscaling-keda")
    assert {(t.metric, t.value) for t in one.targets} == {
        (t.metric, t.value) for t in other.targets
    }
    assert (one.least, one.most, one.down) == (other.least, other.most, other.down)


# The algorithm itself, by the examples of its documentation.


def scaler(replicas: int, **chosen: object) -> Autoscaler:
    told = Rules(1, 100, (Target("m", 100.0, external=False),), dict(UP_AT_ONCE), dict(AT_ONCE))
    return Autoscaler(replace(told, **chosen), replicas)


AT_ONCE = {
    "stabilizationWindowSeconds": 0,
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}
UP_AT_ONCE = AT_ONCE | {"policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}]}


def pods(*values: float | None) -> list[dict[str, float] | None]:
    return [None if value is None else {"m": value} for value in values]


def test_twice_the_target_is_twice_the_pods_and_half_is_half():
    assert scaler(2).sync(0, pods(200, 200)) == 4
    assert scaler(4).sync(0, pods(50, 50, 50, 50)) == 2


def test_within_a_tenth_nothing_changes():
    assert scaler(10).sync(0, pods(*[109] * 10)) == 10
    assert scaler(10).sync(0, pods(*[112] * 10)) == 12


def test_pods_that_are_not_ready_count_as_idle_when_more_are_wanted():
    assert scaler(3).sync(0, pods(300, 300, None)) == 6
    assert scaler(4).sync(0, pods(150, 150, None, None)) == 4


def test_down_goes_to_the_most_that_was_wanted_within_the_window():
    one = scaler(8, down=AT_ONCE | {"stabilizationWindowSeconds": 60})
    assert one.sync(0, pods(*[100] * 8)) == 8
    assert one.sync(15, pods(*[10] * 8)) == 8
    assert one.sync(61, pods(*[10] * 8)) == 1


def test_a_policy_limits_what_changes_in_its_period():
    one = scaler(
        10, down=AT_ONCE | {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    )
    times = range(0, 150, SYNC_SECONDS)
    wanted = [one.sync(now, pods(*[10] * one.replicas)) for now in times]
    assert wanted == [9, 9, 9, 9, 8, 8, 8, 8, 7, 7]


def test_a_sum_is_shared_among_the_pods():
    one = scaler(2, targets=(Target("m", 100.0, external=True),))
    assert one.sync(0, pods(450, 50)) == 5
