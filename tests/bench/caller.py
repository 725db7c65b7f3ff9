"""A client process that reconstructs one row at a time.

Usage: caller.py TARGET ROWS.npy CALLS_PER_SECOND. Prints "ready" when it is connected, calls until
its standard input ends, then prints a JSON list of the calls' seconds. Calls do not overlap; a late
call delays the next.
"""

from __future__ import annotations

import json
import select
import sys
import time

import numpy as np

from latentd.client import Client


def main() -> None:
    target, path, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    row = np.load(path, mmap_mode="r")[:1].copy()
    latencies: list[float] = []
    with Client(target) as client:
        for _ in range(20):
            client.reconstruct(row)
        print("ready", flush=True)
        due = time.perf_counter()
        while True:
            due = max(due + 1 / rate, time.perf_counter())
            if select.select([sys.stdin], [], [], max(due - time.perf_counter(), 0))[0]:
                break
            started = time.perf_counter()
            client.reconstruct(row)
            latencies.append(time.perf_counter() - started)
    print(json.dumps(latencies))


if __name__ == "__main__":
    main()
