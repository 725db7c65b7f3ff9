"""Tables through latentd's own commands: train, export, serve, score and sample."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import processes

Array = np.ndarray[Any, Any]

DRAWS: Final = 64  # of z for each row that is scored
_COMMANDS: Final = """
import contextlib, io, json, sys
from latentd.__main__ import main
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(json.loads(line))
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


def arguments(
    description: str, tables: Collection[str], seeds: int, out: Path, flags: Sequence[str]
) -> argparse.Namespace:
    """The command line of a benchmark on tables. flags: the default ones of latentd train."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--python", default=".venv/bin/python", help="latentd's (.venv/bin/python)")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"of splits and models ({seeds})")
    parser.add_argument("--tables", nargs="+", default=list(tables), choices=tables)
    parser.add_argument("--out", type=Path, default=out, help=f"folder of runs and results ({out})")
    parser.add_argument("flags", nargs="*", default=flags, help="of latentd train")
    return parser.parse_args()


class Latentd:
    """The commands, all in one process: importing takes longer than training on a small table.

    python: that of latentd's environment. folder: for runs and bundles; a finished bundle is used
    again, so that a benchmark that was stopped goes on.
    """

    def __init__(self, python: str, folder: Path) -> None:
        # Absolute, but not resolved: the file's place says which environment it is of.
        self.python = str(Path(python).absolute())
        self.folder = folder.absolute()
        self._bundles = self.folder / "bundles"
        self._commands = subprocess.Popen(
            [python, "-c", _COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def publish(self, name: str, rows: pd.DataFrame, seed: int, flags: Sequence[str]) -> None:
        """Train on these rows, and export the run as the model `name`."""
        if (self._bundles / name).exists():
            return
        run, table = self.folder / "runs" / name, self.folder / f"{name}.csv"
        run.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(table, index=False)
        common = {"seed": seed, "test_fraction": 0.01, "tracker": "none", "threads": 1}
        self._run("train", *flags, data=f"table:{table}", out=run, **common)
        self._run("export", checkpoint=run / "best.pt", bundles=self._bundles, name=name)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """A server of all models; gives its address."""
        with processes.server(self._bundles, python=self.python) as server:
            yield f"127.0.0.1:{server.port}"

    def scores(self, server: str, name: str, rows: pd.DataFrame) -> dict[str, Array]:
        """reconstruction_error, elbo and log_likelihood of each row, in nats."""
        table, out = self.folder / "rows.csv", self.folder / "scores.npz"
        rows.to_csv(table, index=False)
        how = {"draws": DRAWS, "seed": 0, "threshold": 0}
        self._run("client", "score", str(table), server=server, model=name, out=out, **how)
        with np.load(out) as arrays:
            return dict(arrays)

    def sample(self, server: str, name: str, count: int, seed: int) -> pd.DataFrame:
        """Rows drawn from the model."""
        out = self.folder / "sampled.csv"
        how = {"count": count, "seed": seed, "out": out}
        self._run("client", "sample", "--draw-x", server=server, model=name, **how)
        return pd.read_csv(out)

    def _run(self, *words: str, **flags: Any) -> None:
        arguments = list(words)
        for name, value in flags.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        assert self._commands.stdin
        assert self._commands.stdout
        self._commands.stdin.write(json.dumps(arguments) + "\n")
        self._commands.stdin.flush()
        answer = self._commands.stdout.readline()
        status, said = json.loads(answer) if answer else (None, "the process ended")
        if status != 0:
            raise RuntimeError(f"latentd {' '.join(arguments)}:\n{said}")
