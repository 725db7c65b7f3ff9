"""The limit of quarantined rows, and the summary of the reasons."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentd.errors import ConfigError
from latentd.jobs.quarantine import Limit, reasons
from latentd.readers.rows import BadRow

DEFAULT = ("--max-quarantined", "1%")


def write(path, x: np.ndarray, bad: int):
    """A table whose first `bad` rows have no value."""
    values = [None] * bad + [row.tobytes() for row in x[bad:]]
    pq.write_table(pa.table({"x": pa.array(values, pa.binary())}), path)
    return path


@pytest.mark.parametrize(
    ("text", "of", "rows"),
    [
        ("1%", 1000, 10),
        ("1%", 99, 0),
        ("0.5%", 1000, 5),
        ("100%", 7, 7),
        ("20", 7, 20),
        ("0", 7, 0),
    ],
)
def test_limit_is_a_percentage_or_a_number(text, of, rows):
    assert Limit(text).rows(of) == rows


@pytest.mark.parametrize("text", ["", "%", "-1", "101%", "0.5", "1e3", "many", "1 %"])
def test_invalid_limit_is_rejected(text):
    with pytest.raises(ConfigError, match="--max-quarantined"):
        Limit(text)


@pytest.mark.parametrize(("bad", "status"), [(1, 0), (2, 66)])
def test_default_limit_is_one_percent(jobs, x, tmp_path, capsys, bad, status):
    table = write(tmp_path / "x.parquet", x, bad)
    assert jobs.run(table, tmp_path / "out", *DEFAULT) == status
    assert (tmp_path / "out" / "_SUCCESS").exists() == (status == 0)
    assert len(jobs.quarantine(tmp_path / "out")) == bad
    said = capsys.readouterr()
    assert f"{bad} of 100 rows ({bad}%) are quarantined" in said.out + said.err


@pytest.mark.parametrize("processes", [1, 2])
def test_job_over_the_limit_finishes_with_a_higher_limit(jobs, x, tmp_path, capsys, processes):
    table, output = write(tmp_path / "x.parquet", x, len(x)), tmp_path / "out"
    flags = (*DEFAULT, "--processes", processes)
    assert jobs.run(table, output, *flags) == 66
    said = capsys.readouterr().err
    assert "100 of 100 rows (100%) are quarantined; --max-quarantined 1% allows 1." in said
    assert "        100  no value (first: row 0, 0)" in said
    assert not (output / "_SUCCESS").exists()
    before = {path: path.stat().st_ino for path in (output / "shards").iterdir()}
    assert jobs.run(table, output, *flags, "--max-quarantined", "100") == 0
    assert "All 100 rows were finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_ino for path in (output / "shards").iterdir()}
    assert json.loads((output / "_SUCCESS").read_text())["quarantined"] == 100


def test_reasons_are_counted_most_frequent_first():
    bad = [BadRow(i, f"{i}.png", f"{i}.png: holds {i / 7:g}, outside 0 to 1") for i in range(3)]
    bad += [BadRow(9, "9", "no value")]
    bad += [BadRow(20 + i, "a", "no value " + "x" * i) for i in range(1, 9)]
    lines = reasons(bad).splitlines()
    assert lines[0] == "          3  0.png: holds 0, outside 0 to 1 (such as: row 0, 0.png)"
    assert lines[1] == "          1  no value (first: row 9, 9)"
    assert lines[-1] == "          5  for 5 other reasons"


def test_reasons_are_counted_for_each_column():
    missing = [f"has a bad value: column 's0{i % 2}' is missing" for i in range(5)]
    bad = [BadRow(i, str(i), reason) for i, reason in enumerate(missing)]
    lines = reasons(bad).splitlines()
    assert lines == [
        "          3  has a bad value: column 's00' is missing (first: row 0, 0)",
        "          2  has a bad value: column 's01' is missing (first: row 1, 1)",
    ]
