"""A job over a table: scores, latents and reconstructions by the names of its columns."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from latentd import bundle
from latentd.__main__ import main
from latentd.errors import LatentdError
from latentd.readers.rows import Chunk
from latentd.readers.tables import TableReader
from latentd.shapes import Shape
from latentd.tables import to_values
from latentd.training.model import decoded, gaussian_kl
from tests.support.server import server_starter
from tests.support.table_bundle import COLUMNS, X, publish_table, table_model

FLAGS = ("--processes", "1", "--provider", "cpu", "--max-quarantined", "99")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_table(tmp_path_factory.mktemp("models"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The rows of X, with columns in another order, and two rows that are none."""
    values = to_values(COLUMNS, X)
    lines = [
        [f"r{n}", values["open"][n], values["pressure"][n], values["color"][n], values["leak"][n]]
        for n in range(len(X))
    ]
    lines[0][1] = "True"
    lines[2][1] = "unknown"
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "open", "pressure", "color", "leak"])
        writer.writerows([*lines[:2], ["short", "true"], *lines[2:]])
        writer.writerow(["gap", "true", "1", "red", ""])
    return path


def expected(net: torch.nn.Module) -> dict[str, np.ndarray]:
    x = torch.from_numpy(X)
    with torch.no_grad():
        mean, log_var = net.encode(x)  # type: ignore[operator]
        error = net.distortion(mean, x)  # type: ignore[operator]
        again = decoded(net, mean).numpy()  # type: ignore[arg-type]
    elbo = -error - gaussian_kl(mean, log_var)
    rebuilt = to_values(COLUMNS, again)
    return {"mean": mean.numpy(), "elbo": elbo.numpy()} | rebuilt


def check(found: dict[str, list], by_torch: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(np.array(found["mean"]), by_torch["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["elbo"], by_torch["elbo"], rtol=1e-4)
    for column in COLUMNS:
        values, wanted = found[f"reconstruction.{column.name}"], by_torch[column.name]
        if column.is_categorical:
            assert values == wanted.tolist()
        else:
            np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_rows_are_scored_by_name_and_bad_ones_are_quarantined(
    folder: Path, table: Path, tmp_path: Path
) -> None:
    out, by_torch = tmp_path / "out", expected(table_model())
    job = ["batch", "--input", str(table), "--id-column", "id", "--reconstruction", "raw", *FLAGS]
    assert main([*job, "--bundle", str(folder), "--output", str(out)]) == 0
    found = pq.read_table(out / "shards").to_pydict()
    assert (found["row"], found["id"]) == ([0, 1, 3, 4], ["r0", "r1", "r2", "r3"])
    check(found, by_torch)
    sheet = (out / "sheet.html").read_text()
    assert "in standard deviations of the training rows" in sheet
    assert "r2: " in sheet  # the row beyond the training rows
    assert re.search(r"<br>leak 9e-06, reconstruction \S+e-0", sheet)
    bad = (out / "quarantine.jsonl").read_text()
    assert "has 2 values; the first line names 5" in bad
    assert "column 'leak' is missing" in bad
    with server_starter() as start:
        target = start(folder.parents[1]).target
        remote = tmp_path / "remote"
        flags = [flag for flag in job if flag not in ("--provider", "cpu")]
        assert main([*flags, "--server", target, "--output", str(remote)]) == 0
        check(pq.read_table(remote / "shards").to_pydict(), by_torch)


def test_a_parquet_table_gives_a_structured_array(
    folder: Path, table: Path, tmp_path: Path
) -> None:
    rows = {name: values for name, values in to_values(COLUMNS, X).items()}
    pq.write_table(pa.table(rows | {"id": ["a", "b", "c", "d"]}), tmp_path / "t.parquet")
    job = ["batch", "--input", str(tmp_path / "t.parquet"), "--format", "npy", *FLAGS]
    flags = ["--reconstruction", "raw", "--bundle", str(folder), "--output", str(tmp_path / "o")]
    assert main([*job, *flags]) == 0
    (shard,) = (tmp_path / "o" / "shards").glob("*.npy")
    found = np.load(shard)
    by_torch = expected(table_model())
    assert found["reconstruction"]["color"].tolist() == by_torch["color"].tolist()
    np.testing.assert_allclose(found["elbo"], by_torch["elbo"], rtol=1e-4)


def test_other_columns_of_a_parquet_table_are_not_read(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(to_values(COLUMNS, X) | {"note": ["a", "b", "c", "d"]}), path)
    note = pq.ParquetFile(path).metadata.row_group(0).column(len(COLUMNS))
    with path.open("r+b") as file:
        file.seek(note.dictionary_page_offset)
        file.write(b"\xff" * note.total_compressed_size)
    reader = TableReader(str(path), bundle.load(folder).manifest)
    np.testing.assert_array_equal(reader.read(0, 4).x, X)


def test_a_table_without_a_column_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("open,color\ntrue,red\n")
    job = ["batch", "--input", str(tmp_path / "t.csv"), "--bundle", str(folder), *FLAGS]
    assert main([*job, "--output", str(tmp_path / "out")]) != 0
    assert "t.csv has no column 'pressure', which the model needs" in capsys.readouterr().err


def read(path: Path, folder: Path, id_column: str = "") -> tuple[Chunk, TableReader]:
    reader = TableReader(str(path), bundle.load(folder).manifest, id_column)
    return reader.read(0, reader.rows), reader


def test_codes_and_ids_are_text(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,open,pressure,color,leak\n007,true,1,,2\nNA,true,1,red,2\n")
    chunk, _ = read(path, folder, "id")
    assert chunk.ids == ["007", ""]
    assert chunk.x[:, 1].tolist() == [3, 2]  # the fill, and red


def test_bytes_of_parquet_are_text(folder: Path, tmp_path: Path) -> None:
    columns = {"id": [b"a", None], "open": [True, False], "pressure": [1, 2], "leak": [1.0, 2.0]}
    pq.write_table(pa.table(columns | {"color": [b"red", b""]}), tmp_path / "t.parquet")
    chunk, _ = read(tmp_path / "t.parquet", folder, "id")
    assert (chunk.ids, chunk.x[:, 1].tolist()) == (["a", ""], [2, 3])


def test_an_empty_line_of_one_column_is_a_row(tmp_path: Path) -> None:
    manifest = bundle.load(publish_table(tmp_path / "models")).manifest
    one = dataclasses.replace(COLUMNS[0], fill_value=None)
    x = dataclasses.replace(manifest.x, shape=Shape.parse([1]), columns=(one,))
    path = tmp_path / "t.csv"
    path.write_text("\npressure\n1\n\n2,3\n4\n")
    reader = TableReader(str(path), dataclasses.replace(manifest, x=x))
    chunk = reader.read(0, reader.rows)
    assert (chunk.rows.tolist(), chunk.x[:, 0].tolist()) == ([0, 3], [1, 4])
    assert [(row.row, row.reason[:12]) for row in chunk.bad] == [
        (1, "has a bad va"),
        (2, "has 2 values"),
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,open,pressure,color,color,leak", "has two columns 'color'; give them different names"),
        ("id,id,open,pressure,color,leak", "has two columns 'id'; give them different names"),
        ("\xe9,open,pressure,color,leak", "columns are not UTF-8; save the file as UTF-8"),
    ],
    ids=["column", "id", "bytes"],
)
def test_names_that_are_none_are_refused(
    folder: Path, tmp_path: Path, header: str, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{header}\n{','.join('1' * (header.count(',') + 1))}\n".encode("latin-1"))
    with pytest.raises(LatentdError, match=message):
        read(path, folder, "id")


def test_a_folder_of_csv_files_is_refused_with_the_glob(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "days").mkdir()
    (tmp_path / "days" / "1.csv").write_text("leak\n1\n")
    job = ["batch", "--input", str(tmp_path / "days"), "--output", str(tmp_path / "out"), *FLAGS]
    assert main([*job, "--bundle", str(folder)]) == 78
    assert (
        f"name the tables in the folder, as in '{tmp_path}/days/*.csv'" in capsys.readouterr().err
    )
