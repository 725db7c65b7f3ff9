"""The bundle has quantiles of the scores of training rows, computed as serving computes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from latentd import bundle
from latentd.errors import BundleError
from latentd.jobs.plan import OutputSpec
from latentd.jobs.reconstruct import LocalReconstructor
from latentd.readers.rows import Chunk
from latentd.shapes import Shape
from latentd.training import data
from latentd.training.config import Config
from tests.support.likelihoods import LIKELIHOODS

Cli = Callable[..., tuple[int, str, str]]

MANIFEST = bundle.Manifest(
    model="m",
    x=bundle.RowFormat("vector", Shape.parse([3]), "float32", (0.0, 1.0)),
    z=bundle.LatentFormat(Shape.parse([2])),
    likelihood=LIKELIHOODS["gaussian"],
    opset=18,
    preprocessing="none",
    parity={},
    files={name: {"sha256": "0" * 64, "bytes": 1} for name in (*bundle.FILES, bundle.LIKELIHOOD)},
    version=1,
    created="2026-01-01T00:00:00+00:00",
)


def exported(
    cli: Cli, folder: Path, *flags: object, of_export: Sequence[object] = ()
) -> bundle.Bundle:
    tiny = ("--epochs", 1, "--hidden-size", 12, "--latent-size", 3)
    assert cli("train", "--out", folder / "run", *tiny, *flags)[0] == 0
    words = ("--checkpoint", folder / "run" / "best.pt", "--bundles", folder / "models")
    status, out, err = cli("export", *words, "--name", "m", *of_export)
    assert status == 0, err
    return bundle.load(Path(json.loads(out)["published"]))


@pytest.mark.parametrize(
    "likelihood", ["gaussian", pytest.param("bernoulli", marks=pytest.mark.slow)]
)
def test_quantiles_are_of_the_scores_that_serving_computes(
    cli: Cli, tmp_path: Path, likelihood: str
) -> None:
    threshold = ("--threshold-percentile", 97.25)
    loaded = exported(cli, tmp_path, "--likelihood", likelihood, of_export=threshold)
    scores = loaded.manifest.training_scores
    rows = data.load(Config(likelihood=likelihood))
    x, held_out = rows.train.x.numpy(), rows.validation.x.numpy()
    served, of_held_out = (
        LocalReconstructor(loaded, OutputSpec(), "cpu").run(
            Chunk(np.arange(len(x)), [""] * len(x), x, [])
        )
        for x in (x, held_out)
    )
    assert scores["rows"] == len(x)
    for name in bundle.SCORES:
        wanted = np.percentile(getattr(served, name).astype(np.float64), scores["levels"])
        np.testing.assert_allclose(scores[name], wanted, rtol=1e-5, atol=1e-4)
    chosen = loaded.manifest.threshold
    assert chosen is not None
    assert chosen.percentile == 97.25
    beyond = np.mean(served.reconstruction_error > chosen.reconstruction_error)
    assert abs(beyond - 0.0275) < 0.005
    outliers = int((of_held_out.reconstruction_error > chosen.reconstruction_error).sum())
    assert 0 < outliers < len(held_out)
    assert (chosen.validation_rows, chosen.validation_outliers) == (len(held_out), outliers)


@pytest.mark.parametrize("damage", ["order", "length", "name", "nan", "words"])
def test_invalid_quantiles_are_rejected(damage: str) -> None:
    rising = {name: [0.0, 1.0, 2.0] for name in ("levels", *bundle.SCORES)}
    bad: object = {
        "order": rising | {"rows": 3, "kl": [1.0, 0.0, 2.0]},
        "length": rising | {"rows": 3, "elbo": [0.0, 1.0]},
        "name": {"rows": 3, "levels": [0.0, 1.0, 2.0]},
        "nan": rising | {"rows": 3, "kl": [0.0, 1.0, float("nan")]},
        "words": "none",
    }[damage]
    manifest = json.loads(MANIFEST.to_json()) | {"training_scores": bad}
    with pytest.raises(BundleError, match="training_scores"):
        bundle.Manifest.from_json(json.dumps(manifest).encode())


def test_bundle_without_quantiles_loads() -> None:
    manifest = json.loads(MANIFEST.to_json())
    del manifest["training_scores"]
    assert bundle.Manifest.from_json(json.dumps(manifest).encode()) == MANIFEST


@pytest.mark.parametrize(
    ("percentile", "meant"),
    [
        ("0", "."),
        ("-1", "."),
        ("101", "."),
        ("nan", "."),
        ("0.99", ". 0.99 would make outliers of 99.01 % of the training rows. Did you mean 99?"),
        ("1", ". 1 would make outliers of 99 % of the training rows. Did you mean 99?"),
        ("5", ". 5 would make outliers of 95 % of the training rows. Did you mean 95?"),
    ],
)
def test_threshold_of_no_percentile_is_refused(
    cli: Cli, tmp_path: Path, percentile: str, meant: str
) -> None:
    words = ("--checkpoint", tmp_path, "--bundles", tmp_path, "--name", "m")
    status, _, err = cli("export", *words, f"--threshold-percentile={percentile}")
    assert status == 2
    assert f"expected a percentage from 50 to 100, such as 99{meant}\n" in err


@pytest.mark.slow
def test_autoencoder_has_no_quantiles(cli: Cli, tmp_path: Path) -> None:
    assert exported(cli, tmp_path, "--model", "ae").manifest.training_scores == {}
