"""Synthetic rows of tables: latentd's samples and those of SDV's TVAE, next to real rows.

Both train on the same rows; their samples are compared with test rows, which neither saw. Figures:
    classifier   AUROC of gradient boosting that tells synthetic from test rows (5 folds); 0.5 is
                 best. "training rows" shows what real rows get.
    distances    mean over the columns: of numbers the Kolmogorov-Smirnov statistic, of categories
                 the total variation distance; 0 is best
    correlation  mean absolute difference of the correlations, categories one-hot; 0 is best
TVAE is ctgan's, which SDV wraps. It runs with its defaults, and once more with the batch size and
the epochs of latentd. It needs an environment of its own: `make bench-tables` makes it.
Usage: bench_synthetic_rows.py [--python .venv/bin/python] [--seeds 3] [--tables wine ...]
       [--out build/synthetic] [-- flags of `latentd train`]
A bundle in --out is used again: take another folder for other flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from ctgan import TVAE
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from table_runs import Latentd, arguments
from table_sets import MIXED

FLAGS: Final = (
    *("--batch-size", "32", "--hidden-size", "64", "--std", "pixel", "--min-std", "0.05"),
)
EPOCHS: Final = 200  # latentd's default


def tvae_rows(train: pd.DataFrame, count: int, seed: int, **settings: Any) -> pd.DataFrame:
    """Samples of a TVAE."""
    model = TVAE(enable_gpu=False, **settings)
    model.set_random_state(seed)
    model.fit(train, discrete_columns=list(categories(train)))
    return model.sample(count)


def categories(rows: pd.DataFrame) -> pd.Index[str]:
    return rows.select_dtypes(exclude="number").columns


def figures(synthetic: pd.DataFrame, test: pd.DataFrame, seed: int) -> dict[str, float]:
    """How far these rows are from the test rows."""
    distances = []
    for column in test:
        if column in categories(test):
            share, real = (rows[column].value_counts(normalize=True) for rows in (synthetic, test))
            distances.append(share.sub(real, fill_value=0).abs().sum() / 2)
        else:
            distances.append(ks_2samp(synthetic[column], test[column]).statistic)
    both = pd.get_dummies(pd.concat((synthetic, test), ignore_index=True), dtype=float)
    is_real = np.arange(len(both)) >= len(synthetic)
    difference = both[is_real].corr().fillna(0) - both[~is_real].corr().fillna(0)
    above = np.triu_indices(len(difference), 1)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(random_state=seed)
    guess = cross_val_predict(classifier, both, is_real, cv=folds, method="predict_proba")[:, 1]
    return {
        "classifier": roc_auc_score(is_real, guess),
        "distances": float(np.mean(distances)),
        "correlation": float(difference.abs().to_numpy()[above].mean()),
    }


def main() -> None:
    args = arguments(str(__doc__), MIXED, 3, Path("build/synthetic"), FLAGS)
    latentd = Latentd(args.python, args.out)
    sets = {}
    for table in args.tables:
        for seed in range(args.seeds):
            rows = MIXED[table](seed)
            sets[table, seed] = train, _ = train_test_split(rows, test_size=0.3, random_state=seed)
            latentd.publish(f"{table}-{seed}", train, seed, args.flags)
    lines = []
    with latentd.serving() as server:
        for (table, seed), (train, test) in sets.items():
            count = len(test)
            ways = {
                "training rows": train.sample(count, random_state=seed),
                "latentd": latentd.sample(server, f"{table}-{seed}", count, seed),
                "TVAE": tvae_rows(train, count, seed),
                f"TVAE, batches of 32, {EPOCHS} epochs": tvae_rows(
                    train, count, seed, batch_size=32, epochs=EPOCHS
                ),
            }
            lines += [
                {"table": table, "seed": seed, "rows": name} | figures(rows, test, seed)
                for name, rows in ways.items()
            ]
    results = pd.DataFrame(lines)
    results.to_csv(args.out / "synthetic.csv", index=False)
    for figure in ("classifier", "distances", "correlation"):
        print(f"\n{figure}, mean and standard deviation of {args.seeds} seeds")
        groups = results.groupby(["rows", "table"], sort=False)[figure]
        cells = groups.agg(lambda values: f"{values.mean():.3f} ({values.std(ddof=0):.3f})")
        print(cells.unstack()[args.tables].to_string())


if __name__ == "__main__":
    main()
