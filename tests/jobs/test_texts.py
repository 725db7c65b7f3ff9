"""A job over texts: the scores of each line, as PyTorch computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latentd.__main__ import main
from latentd.training.model import decoded, gaussian_kl
from tests.support.server import server_starter
from tests.support.text_bundle import TEXTS, X, publish_text, text_model


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_text(tmp_path_factory.mktemp("models"))


def test_each_line_is_scored_or_quarantined(text_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join([*TEXTS, "much too long"]), encoding="utf-8")
    out = tmp_path / "out"
    flags = [
        "--processes",
        "1",
        "--reconstruction",
        "raw",
        "--provider",
        "cpu",
        "--max-quarantined",
        "1",
    ]
    job = ["batch", "--input", str(lines), "--bundle", str(text_folder), "--output", str(out)]
    assert main([*job, *flags]) == 0
    table = pq.read_table(out / "shards").to_pydict()
    net, x = text_model(), torch.from_numpy(X)
    with torch.no_grad():
        mean, log_var = net.encode(x)
        error, kl = net.distortion(mean, x), gaussian_kl(mean, log_var)
        again = decoded(net, mean).numpy()
    assert table["row"] == list(range(len(TEXTS)))
    np.testing.assert_allclose(table["reconstruction_error"], error, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table["elbo"], -error - kl, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(table["mean"]), mean, rtol=1e-4, atol=1e-5)
    assert table["reconstruction"] == [row.tobytes() for row in again]
    with server_starter() as start:
        target = start(text_folder.parents[1]).target
        remote = ["--server", target, *flags[:4], "--max-quarantined", "1"]
        job = ["batch", "--input", str(lines), "--output", str(tmp_path / "remote"), *remote]
        assert main(job) == 0
    by_server = pq.read_table(tmp_path / "remote" / "shards").to_pydict()
    assert by_server["reconstruction"] == table["reconstruction"]
    np.testing.assert_allclose(by_server["elbo"], table["elbo"], rtol=1e-5)
    assert "has 13 bytes in UTF-8; the limit is 7" in (out / "quarantine.jsonl").read_text()
