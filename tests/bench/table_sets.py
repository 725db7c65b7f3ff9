"""Tables that scikit-learn ships or makes, for the two benchmarks of tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_blobs
from sklearn.model_selection import train_test_split

Array = np.ndarray[Any, Any]

TRAIN: Final = 0.7  # of the normal rows; the others are test rows, beside all outliers


@dataclass(frozen=True)
class Outliers:
    """Rows to train on, and test rows of which some are outliers."""

    train: pd.DataFrame
    test: pd.DataFrame
    is_outlier: Array  # of the test rows


def breast_cancer(seed: int) -> Outliers:
    """Normal: the benign ones. Outliers: the malignant ones."""
    data = load_breast_cancer(as_frame=True)
    return _split(data.data, data.target == 0, seed)


def wine(seed: int) -> Outliers:
    """Outliers: the first of three cultivars, as in the collection ODDS."""
    data = load_wine(as_frame=True)
    return _split(data.data, data.target == 0, seed)


def digits(seed: int) -> Outliers:
    """Outliers: one digit, another one for each seed (0 to 4 for the seeds 0 to 4)."""
    data = load_digits(as_frame=True)
    return _split(data.data, data.target == seed % 10, seed)


def blobs(seed: int) -> Outliers:
    """Four clusters. Outliers: uniform in their box, and one in twenty training rows is one too."""
    rng = np.random.default_rng(seed)
    x, _ = make_blobs(1500, n_features=6, centers=4, cluster_std=1.5, random_state=seed)
    planted = rng.uniform(x.min(0), x.max(0), (150, x.shape[1]))
    frame = _frame(np.concatenate((x, planted)))
    found = _split(frame, pd.Series(np.arange(len(frame)) >= len(x)), seed)
    hidden = pd.DataFrame(
        rng.uniform(x.min(0), x.max(0), (len(found.train) // 20, x.shape[1])), columns=frame.columns
    )
    return Outliers(pd.concat((found.train, hidden)), found.test, found.is_outlier)


def sensors(seed: int) -> Outliers:
    """Twenty sensors of very different scales, which follow four hidden quantities.

    Outliers: two of a row's readings are those of another row, so each alone is usual.
    """
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(1800, 4))
    mixed = np.tanh(hidden @ rng.normal(size=(4, 20)) / 2) + 0.3 * hidden @ rng.normal(size=(4, 20))
    x = mixed + 0.1 * rng.normal(size=mixed.shape)
    faulty = np.arange(len(x)) >= 1500
    for row in np.flatnonzero(faulty):
        columns = rng.choice(x.shape[1], 2, replace=False)
        x[row, columns] = x[rng.integers(1500), columns]
    return _split(_frame(x * 10.0 ** rng.uniform(-3, 4, 20) + 5), pd.Series(faulty), seed)


OUTLIERS: Final[dict[str, Callable[[int], Outliers]]] = {
    function.__name__: function for function in (breast_cancer, wine, digits, blobs, sensors)
}


def _frame(x: Array) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"c{number}" for number in range(x.shape[1])])


def _split(x: pd.DataFrame, outlier: pd.Series[bool], seed: int) -> Outliers:
    train, rest = train_test_split(x[~outlier], train_size=TRAIN, random_state=seed)
    test = pd.concat((rest, x[outlier]))
    return Outliers(train, test, np.arange(len(test)) >= len(rest))


def breast_cancer_mixed(seed: int) -> pd.DataFrame:
    """Thirty columns of numbers, and the diagnosis as a category."""
    data = load_breast_cancer(as_frame=True)
    return data.data.assign(diagnosis=data.target.map({0: "malignant", 1: "benign"}))


def wine_mixed(seed: int) -> pd.DataFrame:
    """Thirteen columns of numbers, and the cultivar as a category."""
    data = load_wine(as_frame=True)
    return data.data.assign(cultivar=data.target.map({0: "a", 1: "b", 2: "c"}))


def customers(seed: int) -> pd.DataFrame:
    """Made: four columns of numbers and three categories, each of which depends on others."""
    rng = np.random.default_rng(seed)
    count = 2000
    age = rng.gamma(9, 5, count) + 18
    region = rng.choice(["north", "east", "south", "west"], count, p=[0.4, 0.3, 0.2, 0.1])
    rich = (age - 60) / 20 + np.where(region == "north", 0.8, 0) + rng.normal(size=count)
    plan = np.select([rich > 0.8, rich > -0.4], ["large", "medium"], "small")
    price = pd.Series(plan).map({"large": 90.0, "medium": 40.0, "small": 15.0}).to_numpy()
    income = np.exp(10 + 0.4 * rich + 0.2 * rng.normal(size=count))
    hours = np.maximum(0.1, price / 4 - 0.2 * (age - 60) + 3 * rng.normal(size=count))
    bill = price + 0.6 * hours + rng.normal(size=count)
    leaves = rng.random(count) < 1 / (1 + np.exp(0.3 * hours - 2))
    return pd.DataFrame(
        {"age": age, "region": region, "plan": plan, "income": income}
        | {"hours": hours, "bill": bill, "leaves": np.where(leaves, "yes", "no")}
    )


MIXED: Final[dict[str, Callable[[int], pd.DataFrame]]] = {
    "breast_cancer": breast_cancer_mixed,
    "wine": wine_mixed,
    "customers": customers,
}
