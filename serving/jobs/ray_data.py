"""A job's shards on Ray Data: an actor pool, each actor holding a session, over one list of shards.

Ray shares out the numbers of shards and nothing else; what an actor does with one is what any
worker does, so the output is the same, and what Ray tries twice is committed once. Inputs and
--output must be where every node of the cluster finds them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from latentd.errors import ConfigError
from latentd.jobs import exit_codes, outputs, worker
from latentd.jobs.inputs import Rows
from latentd.jobs.store import Store
from latentd.jobs.worker import Done, Failed, Failure, Report, WorkerConfig, explain


def run(setting: WorkerConfig, shards: Sequence[int], actors: int, report: Report) -> None:
    """Commit these shards. actors: 0: one for each GPU of the cluster, or else for each CPU.

    Begins a Ray of this machine where $RAY_ADDRESS names no cluster. Raises ConfigError, Failed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--executor ray needs Ray: pip install 'latentd[ray]'.") from None
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        cluster: dict[str, float] = ray.cluster_resources()
        gpus = int(cluster.get("GPU", 0)) if setting.provider != "cpu" else 0
        most = min(actors or gpus or int(cluster.get("CPU", 1)), len(shards))
        numbers = [{"shard": shard} for shard in shards]
        done = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            _Shards,
            fn_constructor_args=(setting,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=most),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for row in done.iter_rows():
            if row["status"]:
                raise Failed(Failure(int(row["status"]), str(row["what"])))
            report(Done(*(int(row[name]) for name in Done._fields)))
    finally:
        ray.shutdown()


class _Shards:
    """An actor: the session, the open input and the output folder, from one shard to the next."""

    def __init__(self, setting: WorkerConfig) -> None:
        plan = setting.plan
        self._setting, self._reconstruct = setting, worker.reconstruction(setting)
        self._rows = Rows(plan, setting.output)
        self._store = Store(setting.output, plan.digest, outputs.suffix(plan))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Commit the shards of a batch of numbers; a failure is told of and not raised, for Ray
        would try again and wrap its words."""
        counted = Done()

        def count(done: Done) -> None:
            nonlocal counted
            counted = Done(*map(operator.add, counted, done))

        status, what = 0, ""
        try:
            for shard in batch["shard"]:
                worker.attempt(
                    *(self._setting.plan, int(shard), self._rows, self._store),
                    *(self._reconstruct, count, True),
                )
        except Exception as error:
            status, what = exit_codes.status(error), explain(error)
        counts = {name: [value] for name, value in counted._asdict().items()}
        return {**counts, "status": [status], "what": [what]}
