"""Outliers in tables: AUROC of latentd, of PyOD's VAE and of isolation forest.

All methods train on the same rows and score the same test rows. No method sees a label. Training
rows are normal ones, but one in twenty of those of `blobs` is an outlier. latentd runs by its
commands, with the same flags for each table. PyOD's VAE runs with its defaults, and once more for
as many epochs as latentd. PyOD and its PyTorch need an environment of their own: `make
bench-tables` makes it.
Usage: bench_outliers.py [--python .venv/bin/python] [--seeds 5] [--tables wine ...]
       [--out build/outliers] [-- flags of `latentd train`]
A bundle in --out is used again: take another folder for other flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from pyod.models.vae import VAE
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from table_runs import Latentd, arguments
from table_sets import OUTLIERS, Outliers

Array = np.ndarray[Any, Any]

FLAGS: Final = ("--batch-size", "32", "--hidden-size", "64", "--std", "pixel")
EPOCHS: Final = 200  # latentd's default


def latentd_scores(found: dict[str, Array]) -> dict[str, Array]:
    """The three scores that latentd gives; larger ones are more unusual."""
    return {
        "latentd, reconstruction_error": found["reconstruction_error"],
        "latentd, -elbo": -found["elbo"],
        "latentd, -log_likelihood": -found["log_likelihood"],
    }


def peers_scores(rows: Outliers, seed: int) -> dict[str, Array]:
    """The scores of the others."""
    train, test = rows.train.to_numpy(float), rows.test.to_numpy(float)
    forest = IsolationForest(random_state=seed).fit(train)
    scores = {"isolation forest": -forest.score_samples(test)}
    for name, more in {
        "PyOD's VAE": {},
        f"PyOD's VAE, {EPOCHS} epochs": {"epoch_num": EPOCHS},
    }.items():
        vae = VAE(random_state=seed, device="cpu", verbose=0, **more).fit(train)
        scores[name] = vae.decision_function(test)
    return scores


def main() -> None:
    args = arguments(str(__doc__), OUTLIERS, 5, Path("build/outliers"), FLAGS)
    latentd = Latentd(args.python, args.out)
    sets = {
        (table, seed): OUTLIERS[table](seed) for seed in range(args.seeds) for table in args.tables
    }
    for (table, seed), rows in sets.items():
        latentd.publish(f"{table}-{seed}", rows.train, seed, args.flags)
    lines = []
    with latentd.serving() as server:
        for (table, seed), rows in sets.items():
            found = latentd_scores(latentd.scores(server, f"{table}-{seed}", rows.test))
            for name, scores in (found | peers_scores(rows, seed)).items():
                auroc = roc_auc_score(rows.is_outlier, scores)
                precision = average_precision_score(rows.is_outlier, scores)
                lines.append((table, seed, name, auroc, precision))
    results = pd.DataFrame(lines, columns=["table", "seed", "scores", "AUROC", "precision"])
    results.to_csv(args.out / "outliers.csv", index=False)
    for figure in ("AUROC", "precision"):
        print(f"\n{figure}, mean and standard deviation of {args.seeds} seeds")
        groups = results.groupby(["scores", "table"], sort=False)[figure]
        cells = groups.agg(lambda values: f"{values.mean():.3f} ({values.std(ddof=0):.3f})")
        print(cells.unstack()[args.tables].to_string())


if __name__ == "__main__":
    main()
