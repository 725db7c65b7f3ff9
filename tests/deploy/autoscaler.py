"""Kubernetes' horizontal autoscaler, as its documentation describes the algorithm, on a clock that
is passed in: desired = ceil(replicas * value / target) of each metric, the largest of them, then
stabilisation windows and policies. What it is told stands in the manifests, and only there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SYNC_SECONDS = 15
TOLERANCE = 0.1

# Where a manifest is silent.
UP = {
    "stabilizationWindowSeconds": 0,
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 15},
        {"type": "Pods", "value": 4, "periodSeconds": 15},
    ],
}
DOWN = {
    "stabilizationWindowSeconds": 300,
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}


@dataclass(frozen=True)
class Target:
    """A metric and what it should be in the mean of all pods.

    external: a sum over pods that is divided by their number, as KEDA asks for it; else each pod's
    value is asked for, and pods that are not ready count as idle when more are wanted.
    """

    metric: str
    value: float
    external: bool


@dataclass(frozen=True)
class Rules:
    """What a manifest says."""

    least: int
    most: int
    targets: tuple[Target, ...]
    up: dict[str, Any]
    down: dict[str, Any]


def quantity(text: str | float) -> float:
    """A Kubernetes quantity of the kinds used here: 64, 700m."""
    said = str(text)
    return float(said[:-1]) / 1000 if said.endswith("m") else float(said)


def of_autoscaler(document: dict[str, Any]) -> Rules:
    """The rules of a HorizontalPodAutoscaler."""
    spec, targets = document["spec"], []
    for metric in spec["metrics"]:
        if metric["type"] == "Pods":
            name, target = metric["pods"]["metric"]["name"], metric["pods"]["target"]
            targets.append(Target(name, quantity(target["averageValue"]), external=False))
        else:
            target = metric["containerResource"]["target"]
            targets.append(Target("cpu", target["averageUtilization"] / 100, external=False))
    behavior = spec.get("behavior", {})
    return Rules(
        *(spec["minReplicas"], spec["maxReplicas"], tuple(targets)),
        *(UP | behavior.get("scaleUp", {}), DOWN | behavior.get("scaleDown", {})),
    )


def of_scaled_object(document: dict[str, Any]) -> Rules:
    """The rules of the autoscaler that KEDA makes of a ScaledObject."""
    spec, targets = document["spec"], []
    for trigger in spec["triggers"]:
        told = trigger["metadata"]
        if trigger["type"] == "prometheus":
            targets.append(Target(trigger["name"], quantity(told["threshold"]), external=True))
        else:
            targets.append(Target("cpu", float(told["value"]) / 100, external=False))
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return Rules(
        *(spec["minReplicaCount"], spec["maxReplicaCount"], tuple(targets)),
        *(UP | behavior.get("scaleUp", {}), DOWN | behavior.get("scaleDown", {})),
    )


@dataclass
class Autoscaler:
    """One at work. `replicas` is what it wants."""

    rules: Rules
    replicas: int
    wanted: list[tuple[float, int]] = field(default_factory=list)  # before stabilisation
    changes: list[tuple[float, int]] = field(default_factory=list)  # when, and by how many

    def sync(self, now: float, pods: list[dict[str, float] | None]) -> int:
        """Look at every pod's metrics (None: it is not ready yet); returns the replicas wanted."""
        ideal = max(self._of(target, pods) for target in self.rules.targets)
        self.wanted.append((now, ideal))
        up = self.rules.up["stabilizationWindowSeconds"]
        down = self.rules.down["stabilizationWindowSeconds"]
        # Within the window up as few as ever were wanted, within the window down as many.
        low = min([n for at, n in self.wanted if at > now - up] or [ideal])
        high = max(n for at, n in self.wanted if at >= now - down)
        stable = min(max(self.replicas, min(low, ideal)), max(high, ideal))
        most, least = self._limit_up(now), self._limit_down(now)
        chosen = min(max(stable, least), most)
        chosen = min(max(chosen, self.rules.least), self.rules.most)
        if chosen != self.replicas:
            self.changes.append((now, chosen - self.replicas))
            self.replicas = chosen
        return chosen

    def _of(self, target: Target, pods: list[dict[str, float] | None]) -> int:
        ready = [pod[target.metric] for pod in pods if pod is not None]
        if not ready:
            return self.replicas
        if target.external:
            ratio = sum(ready) / (target.value * self.replicas)
            return self.replicas if _near(ratio) else math.ceil(sum(ready) / target.value)
        ratio = sum(ready) / len(ready) / target.value
        if _near(ratio):
            return self.replicas
        if len(ready) == len(pods) or ratio < 1:
            return math.ceil(ratio * len(ready)) if len(ready) == len(pods) else self.replicas
        ratio = sum(ready) / len(pods) / target.value  # who is not ready yet will take its share
        return self.replicas if ratio <= 1 or _near(ratio) else math.ceil(ratio * len(pods))

    def _limit_up(self, now: float) -> int:
        limits = []
        for policy in self.rules.up["policies"]:
            before = self._before(now, policy["periodSeconds"])
            pods = policy["type"] == "Pods"
            more = policy["value"] if pods else before * policy["value"] / 100
            limits.append(math.ceil(before + more))
        return max(limits)

    def _limit_down(self, now: float) -> int:
        limits = []
        for policy in self.rules.down["policies"]:
            before = self._before(now, policy["periodSeconds"])
            pods = policy["type"] == "Pods"
            less = policy["value"] if pods else before * policy["value"] / 100
            limits.append(math.floor(before - less))
        return min(limits)

    def _before(self, now: float, seconds: float) -> int:
        return self.replicas - sum(by for at, by in self.changes if at > now - seconds)


def _near(ratio: float) -> bool:
    return abs(ratio - 1) <= TOLERANCE
