"""table:FILE and npz: vectors: what becomes rows, what is refused, and what a model makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from latentd import bundle
from latentd.columns import Column
from latentd.training import data, dataset, table_columns
from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.likelihoods.normal_quantile import normal_quantile
from latentd.training.manifest import fitted
from latentd.training.model import log_likelihood
from latentd.training.readers.table import TableOptions, read_table
from latentd.training.sheets import table as table_sheets
from tests.support.table_bundle import COLUMNS, X, publish_table, table_model

CSV = "age,city,well\n30,Rome,true\n41.5,Bonn,false\n,Rome,true\n7,,true\n"


def written(tmp_path: Path, content: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def many(tmp_path: Path, rows: int = 60) -> Path:
    lines = [f"{20 + n % 7},{('Rome', 'Bonn')[n % 2]},{n * 1000}" for n in range(rows)]
    return written(tmp_path, "\n".join(["age,city,pay", *lines, ",Rome,500"]))


def test_numbers_are_numeric_and_text_and_booleans_are_categorical(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, CSV), TableOptions())
    names = [(column.name, column.levels) for column in found.columns]
    assert names == [("age", ()), ("city", ("Bonn", "Rome")), ("well", ("false", "true"))]
    nan = np.nan
    np.testing.assert_array_equal(found.x, [[30, 1, 1], [41.5, 0, 0], [nan, 1, 1], [7, nan, 1]])
    assert "'city' (2 values), 'well' (2 values)" in found.notes[1]


def test_parquet_and_tabs_give_the_same(tmp_path: Path) -> None:
    expected = read_table(written(tmp_path, CSV), TableOptions())
    table = pa.table(
        {
            "age": [30, 41.5, None, 7],
            "city": pa.array(["Rome", "Bonn", "Rome", None]).dictionary_encode(),
            "well": [True, False, True, True],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    for path in (tmp_path / "t.parquet", written(tmp_path, CSV.replace(",", "\t"), "t.tsv")):
        found = read_table(path, TableOptions())
        assert found.columns == expected.columns
        np.testing.assert_array_equal(found.x, expected.x)


def test_columns_are_left_out_taken_as_codes_and_as_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "id,code,y\na,3,no\nb,7,yes\nc,3,no\n")
    found = read_table(path, TableOptions(("id",), ("code",), "y"))
    assert found.columns == (Column("code", ("3", "7")),)
    assert found.x.tolist() == [[0], [1], [0]]
    assert found.y is not None
    assert (found.y.tolist(), found.classes) == ([0, 1, 0], ("no", "yes"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,a\n1,2\n", "two columns 'a'"),
        ("a,b\n1,2\n3\n", "cannot be read as a CSV file: .*xpected 2 columns, got 1.* Each line"),
        ("1,2\n3,4\n", "the first line holds numbers, '1' first; it must name the columns"),
        ("a;b\n1;2\n", "has one column, 'a;b': it seems to be separated otherwise"),
        ("a;b\n1,5;2,5\n", "line has ';': expected values separated by commas, and decimal points"),
        ("a,\n1,2\n", "column 2 is called ''"),
        ("a,t\n1,2026-11-28\n", r"column 't' holds date32.* leave it out with --ignore-columns"),
        ("a,b\n1,\n2,\n", "column 'b' has no value"),
        ("caf\xe9,b\n1,2\n", "the names of its columns are not UTF-8; save the file as UTF-8"),
        ("", "t.csv is empty"),
        ("a,b\n", "has no rows to learn from"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TrainingError, match=message):
        read_table(path, TableOptions())


def test_a_parquet_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({}), path)
    with pytest.raises(TrainingError, match=r"t\.parquet has no columns"):
        read_table(path, TableOptions())
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(byte ^ 0x5A for byte in content[4:400])
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"t\.parquet cannot be read as a Parquet file: \w+"):
        read_table(path, TableOptions())


def test_an_empty_line_of_one_column_is_a_missing_value(tmp_path: Path) -> None:
    x = read_table(written(tmp_path, "\na\n1\n\n3\n"), TableOptions()).x
    np.testing.assert_array_equal(x, [[1], [np.nan], [3]])


def test_a_column_of_numbers_with_a_typo_is_not_learned_as_categorical(tmp_path: Path) -> None:
    path = written(tmp_path, "a\n1.5\n2\n3\n12o\n")
    with pytest.raises(TrainingError, match=r"but also '12o'\. .* --categorical-columns"):
        read_table(path, TableOptions())
    (column,) = read_table(path, TableOptions(categorical_columns=("a",))).columns
    assert column.levels == ("1.5", "12o", "2", "3")


def test_a_category_of_too_many_values_is_refused(tmp_path: Path) -> None:
    lines = [f"n{number}" for number in range(300)]
    with pytest.raises(TrainingError, match="column 'a' has 300 different values; 255 are"):
        read_table(written(tmp_path, "a\n" + "\n".join(lines)), TableOptions())


def test_a_flag_that_names_no_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"--ignore-columns: .* no column 'ages'; it has age"):
        read_table(written(tmp_path, CSV), TableOptions(ignore_columns=("ages",)))


def test_missing_values_are_refused_by_column_and_count(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"missing values in column 'age' \(1\) of 61 rows"):
        data.load(Config(data=f"table:{many(tmp_path)}"))


def test_missing_values_become_the_mean_of_the_training_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = data.load(Config(data=f"table:{many(tmp_path)}", missing="mean"))
    assert (
        "missing values in column 'age' (1) of 61 rows. They are replaced by the column's mean"
        in (capsys.readouterr().err)
    )
    age, city, pay = dataset.columns
    train = dataset.train.x[:, 0].double()
    assert age.fill_value == age.mean
    assert city.fill_value == 2  # the level of other values
    assert pay.mean == pytest.approx(float(dataset.train.x[:, 2].double().mean()), rel=1e-6)
    filled = torch.cat([part.x[:, 0] for part in (dataset.train, dataset.validation, dataset.test)])
    assert (filled == age.fill_value).sum() == 1
    assert age.std == pytest.approx(
        float(train[train != age.fill_value].std(correction=0)), rel=1e-5
    )


def test_batches_are_bounded_by_the_levels_of_the_largest_categorical_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = (*COLUMNS, Column("many", tuple(map(str, range(200)))))
    model = table_model(columns)
    with torch.no_grad():
        params = model.decode(torch.zeros(1, *model.latent_shape))
    assert model.output_shape == params.shape[1:] == (201, 5)
    whole = table_sheets.sampled(model, 40, seed=1)
    monkeypatch.setattr(dataset, "MAX_VALUES", 16 * 201 * 5)
    sizes = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: (sizes.append(len(z)), decode(z))[1])
    in_parts = table_sheets.sampled(model, 40, seed=1)
    assert sizes == [16, 16, 8]
    np.testing.assert_allclose(in_parts, whole, rtol=1e-4)


def test_rows_that_cannot_be_numbers_of_float32_are_refused() -> None:
    columns = [Column("x0"), Column("x1")]
    times = np.array([[1.7e9, 1.0], [1.7e9 + 25, 2.0]])
    with pytest.raises(TrainingError, match=r"float32 loses the differences .* column 'x0'"):
        table_columns.check_precision("t", times, columns)
    infinite = np.array([[0, 1e39], [0, np.inf]])
    with pytest.raises(TrainingError, match=r"infinite, or too large .* column 'x1' \(2\)"):
        table_columns.as_float32("t", infinite, columns)


@pytest.mark.parametrize("values", [(1e31, 2e31), (-1e-33, 1e-33), (2e30, 2e30)])
def test_columns_out_of_the_range_of_a_model_are_refused(values: tuple[float, float]) -> None:
    x = torch.tensor([[1, values[0]], [2, values[1]]])
    columns = [Column("a"), Column("b")]
    with pytest.raises(TrainingError, match=r"deviation of column 'b' is out of the range"):
        table_columns.measured(columns, x, Config(data="npz:x"), [])


def test_a_tiny_constant_has_a_scale_that_float32_divides_by() -> None:
    x = torch.full((2, 1), 1e-40)
    (column,) = table_columns.measured([Column("a")], x, Config(data="npz:x"), [])
    assert column.std == 1


def test_columns_that_no_manifest_can_hold_are_refused() -> None:
    many_levels = tuple(f"{number:0200d}" for number in range(255))
    columns = [Column(f"c{number}", many_levels) for number in range(20)]
    with pytest.raises(TrainingError, match=r"20 columns, which take .* 'c19'"):
        table_columns.check_count("t", columns)
    short = [Column(f"c{number}", tuple(map(str, range(255)))) for number in range(200)]
    with pytest.raises(TrainingError, match=r"200 columns, which take"):
        table_columns.check_count("t", short)
    table_columns.check_count("t", [Column(f"x{n}", mean=1 / 3, std=1 / 7) for n in range(4096)])


def test_an_evaluation_of_too_many_columns_is_left_out_of_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = bundle.load(publish_table(tmp_path)).manifest
    assert fitted(manifest) is manifest
    measured = {f"x{number}": {"r2": 1 / 3, "mean": [1 / 3] * 9} for number in range(4096)}
    found = fitted(replace(manifest, evaluation={"nll": 1.0, "columns": measured}))
    assert found.evaluation == {"nll": 1.0}
    assert "evaluation.json has them" in capsys.readouterr().err


def test_a_constant_column_is_kept_and_said() -> None:
    notes: list[str] = []
    x = torch.tensor([[5.0, 1.0], [5.0, 2.0], [torch.nan, 2.0]])
    found = table_columns.measured([Column("a"), Column("b")], x, Config(data="npz:x"), notes)
    assert "column 'a' has one value in all training rows" in notes[0]
    assert (found[0].mean, found[0].std) == (5, 5)


def test_columns_of_whole_numbers_are_known() -> None:
    x = torch.tensor([[5.0, 1.0], [7.0, 2.5], [torch.nan, 3.0]])
    notes: list[str] = []
    found = table_columns.measured([Column("a"), Column("b")], x, Config(data="npz:x"), notes)
    assert notes == [
        "npz:x: column 'a' has integers only, so tables that are written later have it rounded to "
        "integers."
    ]
    assert [column.is_integer for column in found] == [True, False]


@pytest.mark.parametrize("values", [np.float64, np.int64])
def test_vectors_of_any_numbers_are_standardized(tmp_path: Path, values: type) -> None:
    x = (np.random.default_rng(0).normal(size=(50, 3)) * [1, 50, 900] + [0, -7, 4e4]).astype(values)
    np.save(tmp_path / "x.npy", x)
    dataset = data.load(Config(data=f"npz:{tmp_path / 'x.npy'}"))
    assert [column.name for column in dataset.columns] == ["x0", "x1", "x2"]
    train = dataset.train.x.double()
    for column, mean, std in zip(dataset.columns, train.mean(0), train.std(0, False), strict=True):
        assert column.mean == pytest.approx(float(mean), rel=1e-5, abs=1e-6)
        assert column.std == pytest.approx(float(std), rel=1e-5)


def test_vectors_within_rounding_of_0_to_1_are_taken_as_such(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((50, 3))
    x[3, 1] = 1 + 1e-7
    np.save(tmp_path / "x.npy", x)
    dataset = data.load(Config(data=f"npz:{tmp_path / 'x.npy'}"))
    assert dataset.columns == ()
    assert dataset.train.x.max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet"}, "--architecture resnet does not read tables; use mlp, iwae"),
        ({"likelihood": "bernoulli"}, "--likelihood bernoulli does not apply to tables"),
        ({"latents": "spatial"}, "--latents spatial needs --architecture resnet"),
        (
            {"data": "digits", "missing": "mean"},
            "--missing applies only to --data table:FILE and npz:FILE",
        ),
        (
            {"data": "npz:a", "ignore_columns": "a"},
            "--ignore-columns, .* apply only to --data table:FILE",
        ),
        (
            {"data": "digits", "std": "column"},
            "--std column applies only to --data table:FILE and npz:FILE",
        ),
    ],
)
def test_flags_that_tables_have_no_use_for_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Config(**{"data": "table:t.csv"} | settings)


def test_log_p_is_that_of_a_density_in_the_units_of_the_data() -> None:
    model, x = table_model(), torch.from_numpy(X)
    with torch.no_grad():
        params = model.decode(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
        found = log_likelihood(model, x, params).numpy()
    p = params.double().numpy()
    expected = np.zeros(4)
    for place, column in enumerate(COLUMNS):
        if column.is_categorical:
            levels = X[:, place].astype(int)
            expected += p[np.arange(4), levels, place]
            chances = np.exp(p[:, : column.cardinality, place]).sum(1)
            np.testing.assert_allclose(chances, 1, rtol=1e-5)
            assert not p[:, column.cardinality :, place].any()
        else:
            normal = stats.norm(p[:, 0, place], np.exp(p[:, 1, place]))
            expected += normal.logpdf(X[:, place].astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"std": "pixel"}, {"std": "shared"}, {"fixed_std": 0.1}])
def test_a_model_does_not_depend_on_the_units(settings: dict) -> None:
    """Rows in other units have the same latents, and a density that differs by the scale alone."""
    from latentd.training.dataset import RowSpec
    from latentd.training.model import build
    from latentd.training.networks import resolve_architecture

    config = Config(data="table:t.csv", latent_size=2, hidden_size=8, **settings)
    columns = (Column("a", mean=3, std=2), Column("b", mean=-1, std=0.5))
    thousand = (Column("a", mean=3000, std=2000), columns[1])
    models = [
        build(resolve_architecture(config, (2,), True), RowSpec((2,), "float32", columns=c)).eval()
        for c in (columns, thousand)
    ]
    x = torch.tensor([[1.0, -2.0], [4.0, 0.0]])
    rows = [x, x * torch.tensor([1000.0, 1.0])]
    with torch.no_grad():
        codes = [model.encode(row) for model, row in zip(models, rows, strict=True)]
        nll = [m.distortion(c[0], r) for m, c, r in zip(models, codes, rows, strict=True)]
    torch.testing.assert_close(codes[0], codes[1])
    torch.testing.assert_close(nll[1], nll[0] + np.log(1000))


def test_draws_follow_p_of_x_given_z() -> None:
    model, count = table_model(), 20_000
    with torch.no_grad():
        params = model.decode(torch.zeros(1, 3)).expand(count, -1, -1)
        uniform = torch.rand((count, 4), generator=torch.Generator().manual_seed(2))
        x = model.likelihood.draw(params, uniform).double().numpy()  # type: ignore[attr-defined]
    p = params[0].double().numpy()
    for place, column in enumerate(COLUMNS):
        if column.is_categorical:
            shares = np.bincount(x[:, place].astype(int), minlength=column.cardinality) / count
            np.testing.assert_allclose(shares, np.exp(p[: column.cardinality, place]), atol=0.015)
        else:
            normal = stats.norm(p[0, place], np.exp(p[1, place]))
            assert stats.kstest(x[:, place], normal.cdf).pvalue > 1e-3


def test_the_normal_quantile_is_that_of_scipy() -> None:
    u = torch.cat((torch.linspace(1e-7, 1 - 1e-6, 10_001), torch.tensor([2.0**-24, 0.5])))
    np.testing.assert_allclose(normal_quantile(u), stats.norm.ppf(u.double()), atol=2e-5, rtol=2e-5)


def test_rows_of_another_table_are_those_of_the_models_columns(tmp_path: Path) -> None:
    known = (Column("city", ("Bonn", "Oslo")), Column("age"))
    found = read_table(written(tmp_path, CSV), TableOptions())
    rows = table_columns.aligned("t", known, found.columns, found.x)
    np.testing.assert_array_equal(rows, [[2, 30], [0, 41.5], [2, np.nan], [np.nan, 7]])
    with pytest.raises(TrainingError, match="t has no column 'pay', which the model needs"):
        table_columns.aligned("t", (Column("pay"),), found.columns, found.x)


def test_vectors_of_another_width_than_the_models_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((50, 3), np.float32))
    with pytest.raises(TrainingError, match=r"x.npy has 3 columns; this model takes 4"):
        data.load(Config(data=f"npz:{tmp_path / 'x.npy'}"), known=COLUMNS)
