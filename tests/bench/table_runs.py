"""Tables through latentd's own commands: train, export, serve, score and sample."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

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


class Latentd:
    """The commands, all in one process: importing takes longer than training on a small table.

    python: that of latentd's environment. folder: for runs and bundles; a finished bundle is used
    again, so that a benchmark that was stopped goes on.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
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
        places = ["--bundles", str(self._bundles), "--host", "127.0.0.1"]
        ports = ["--port", "0", "--metrics-port", "0"]
        with tempfile.TemporaryFile("w+") as log:
            server = subprocess.Popen(
                [self.python, "-m", "latentd", "serve", *places, *ports],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield self._address(server, log)
            finally:
                server.terminate()
                server.wait()

    def _address(self, server: subprocess.Popen[bytes], log: Any) -> str:
        while server.poll() is None:
            log.seek(0)
            if found := re.search(r"[Ll]istening on ([\d.]+:\d+)", log.read()):
                return found[1]
            time.sleep(0.2)
        log.seek(0)
        raise RuntimeError(log.read())

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
