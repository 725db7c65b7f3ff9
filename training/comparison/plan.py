"""The runs to compare: each model, with several numbers of training rows and several seeds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from latentd.training.config import Config
from latentd.training.errors import TrainingError

SIZES: Final = (1000, 5000, 50_000)  # numbers of training rows for measuring overfitting
_KL_SETTINGS: Final = (
    "k",
    "beta",
    "kl_warmup_epochs",
    "kl_cycles",
    "free_bits",
)  # an AE has none of these settings
_COLLAPSING: Final = 4  # the run that shows collapse has a quarter of the steps


@dataclass(frozen=True)
class Plan:
    """The options of `compare`."""

    config: Config  # what both models share; its `model` and `seed` are not used
    seeds: int
    out: Path
    ood_data: str | None = None  # a second data set, for density estimation
    cache: Path | None = None  # folder of the classifiers; None: the default

    def rows(self, name: object) -> Path:
        """The file with a run's rows, written by `trained_runs`."""
        return self.out / "data" / f"rows-{name}.npz"

    def folder(self, run: str, rows: int, seed: int) -> Path:
        """A run's own folder."""
        return self.out / "runs" / f"{run}-{rows}-seed{seed}"

    def runs(self, sizes: tuple[int, ...], values: int) -> dict[Path, Config]:
        """Every run's folder and config. sizes: training rows, ascending; values: in one row."""
        wanted: dict[Path, Config] = {}
        most = sizes[-1]
        for seed in range(self.seeds):
            for rows in sizes:
                for model in ("vae", "ae"):
                    wanted[self.folder(model, rows, seed)] = self._config(model, rows, most, seed)
            vae = self._config("vae", most, most, seed)
            # Averaging the reconstruction over a row's values instead of summing it makes the KL
            # `values` times too heavy. This mistake causes most collapses that users report.
            wanted[self.folder("collapsing", most, seed)] = dataclasses.replace(
                vae,
                epochs=max(1, vae.epochs // _COLLAPSING),
                **_without_kl_settings() | {"beta": float(values)},
            )
            if self.ood_data is not None:
                data = f"npz:{self.rows('ood')}"
                wanted[self.folder("ood", most, seed)] = dataclasses.replace(vae, data=data)
        return wanted

    def _config(self, model: str, rows: int, most: int, seed: int) -> Config:
        """The config of a run. Every run has as many steps, so fewer rows are seen more often."""
        times = math.ceil(most / rows)
        return dataclasses.replace(
            self.config.with_data(f"npz:{self.rows(rows)}"),
            seed=seed,
            epochs=self.config.epochs * times,
            validate_every=times,
            patience=0,
            **({"model": "ae"} | _without_kl_settings() if model == "ae" else {"model": "vae"}),
        )


def sizes(available: int) -> tuple[int, ...]:
    """Numbers of training rows, ascending. All claims but overfitting use only the last one.

    Raises TrainingError if there are too few rows for a comparison.
    """
    if available < 100:
        raise TrainingError(
            f"--data has {available} training rows, too few to compare models on; give 100 or more."
        )
    most = min(available, SIZES[-1])
    return (*(size for size in SIZES if size < 0.9 * most), most)


def _without_kl_settings() -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(Config)
        if field.name in _KL_SETTINGS
    }
