"""Run a job's shards on Ray Data: a pool of actors, each with a session, over the list of shards.

Ray distributes only shard numbers. An actor runs a shard like any other worker: the output is the
same, and a shard that Ray retries is committed once. Every node of the cluster must have the inputs
and --output at the same paths.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from latentd.errors import ConfigError
from latentd.jobs import exit_codes, outputs, worker
from latentd.jobs.inputs import RowReader
from latentd.jobs.store import Store
from latentd.jobs.worker import Done, Failure, ProgressCallback, WorkerConfig, WorkerFailed, explain


def run(config: WorkerConfig, shards: Sequence[int], actors: int, report: ProgressCallback) -> None:
    """Commit these shards. actors: 0: one for each GPU of the cluster, or else for each CPU.

    Starts Ray on this machine unless $RAY_ADDRESS names a cluster. Raises ConfigError,
    WorkerFailed.
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
        gpus = int(cluster.get("GPU", 0)) if config.provider != "cpu" else 0
        pool_size = min(actors or gpus or int(cluster.get("CPU", 1)), len(shards))
        numbers = [{"shard": shard} for shard in shards]
        done = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            _Shards,
            fn_constructor_args=(config,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=pool_size),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for row in done.iter_rows():
            if row["status"]:
                raise WorkerFailed(Failure(int(row["status"]), str(row["message"])))
            report(Done(*(int(row[name]) for name in Done._fields)))
    finally:
        ray.shutdown()


class _Shards:
    """An actor: it keeps the session, the open input and the output folder between shards."""

    def __init__(self, config: WorkerConfig) -> None:
        plan = config.plan
        self._config, self._reconstruct = config, worker.create_reconstructor(config)
        self._rows = RowReader(plan, config.output, self._reconstruct.consecutive)
        self._store = Store(config.output, plan.digest, outputs.suffix(plan))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Commit the shards of a batch of numbers. A failure is returned and not raised: Ray would
        retry it and wrap its message."""
        counted = Done()

        def count(done: Done) -> None:
            nonlocal counted
            counted = Done(*map(operator.add, counted, done))

        status, message = 0, ""
        try:
            for shard in batch["shard"]:
                worker.process_shard(
                    *(self._config.plan, int(shard), self._rows, self._store),
                    *(self._reconstruct, count, True),
                )
        except Exception as error:
            status, message = exit_codes.status(error), explain(error)
        counts = {name: [value] for name, value in counted._asdict().items()}
        return {**counts, "status": [status], "message": [message]}
