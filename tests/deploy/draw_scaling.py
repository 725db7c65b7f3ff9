"""The simulation of the autoscalers as a picture and a table: make simulate-scaling."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import fleet
import matplotlib as mpl
import yaml
from autoscaler import of_autoscaler, of_scaled_object

COMPONENTS = Path(__file__).resolve().parents[2] / "deploy/k8s/components"
AGE = 300.0  # seconds of a connection, as in the manifests


def main(picture: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    def read(path: str) -> dict:
        return yaml.safe_load((COMPONENTS / path).read_text())

    told = of_autoscaler(read("autoscaling/autoscaler.yaml"))
    queue = tuple(target for target in told.targets if target.metric == "latentd_queue_rows")
    runs = {
        "by the queue alone": replace(told, targets=queue),
        "as in autoscaling": told,
        "as in autoscaling-keda": of_scaled_object(read("autoscaling-keda/scaledobject.yaml")),
    }
    traffic = fleet.read_traffic()
    hours = [second / 3600 for second in range(len(traffic))]
    figure, axes = pyplot.subplots(2, 1, figsize=(8, 4.5), sharex=True, layout="constrained")
    panels = iter(axes)
    print("| | calls shed | turns | pods wanted back within 15 min | pods, mean |")
    print("|---|---|---|---|---|")
    for name, rules in runs.items():
        run = fleet.run(rules, traffic, AGE)
        mean = sum(run.replicas) / len(run.replicas)
        print(f"| {name} | {run.shed_share:.2%} | {run.turns} | {run.regrets(900)} | {mean:.1f} |")
        axis = next(panels, None)
        if axis is None:
            continue  # KEDA's is the same picture
        axis.fill_between(hours, [c / fleet.CAPACITY for c in traffic], color="0.8", label="needed")
        axis.plot(hours, run.replicas, color="C0", linewidth=1, label="pods")
        shed = [hour for hour, lost in zip(hours, run.shed, strict=True) if lost]
        axis.plot(shed, [0.2] * len(shed), "|", color="C3", label="calls are shed")
        axis.set(title=name, ylabel="pods", ylim=(0, 11))
    axes[1].legend(ncols=3, loc="upper left")
    axes[-1].set(xlabel="hours", xlim=(0, 6))
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
