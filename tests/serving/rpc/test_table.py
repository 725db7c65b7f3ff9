"""A model of tables: what each method answers, against PyTorch's model, in the data's own units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from latentd import latents
from latentd.client import Client, DataPoint, SampledPoint
from latentd.errors import InvalidArgument
from latentd.latents import PRIOR, NoiseRange
from latentd.tables import standardized
from latentd.training.model import VAE, decoded, gaussian_kl
from tests.support.server import server_starter
from tests.support.table_bundle import COLUMNS, LATENTS, X, publish_table, table_model


@pytest.fixture(scope="module")
def net() -> VAE:
    return table_model()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("table")
    publish_table(root)
    with server_starter() as start, Client(start(root).target) as client:
        yield client


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal in units of each column's standard deviation, and as levels."""
    np.testing.assert_allclose(
        standardized(COLUMNS, found), standardized(COLUMNS, expected), atol=1e-3
    )


def rows_of(net: VAE, z: np.ndarray, choices: np.ndarray | None = None) -> np.ndarray:
    with torch.no_grad():
        if choices is None:
            return decoded(net, torch.tensor(z)).numpy()
        params = net.decode(torch.tensor(z))
        return net.likelihood.draw(params, torch.tensor(choices)).numpy()  # type: ignore[attr-defined]


def test_the_columns_are_told(client: Client) -> None:
    info = client.get_model()
    assert info.x.columns == COLUMNS
    assert (info.default.x.kind, info.x_bounded) == ("vector", False)
    assert info.likelihood == "mixed"


def test_encode_decode_reconstruct_and_interpolate(client: Client, net: VAE) -> None:
    with torch.no_grad():
        mean, log_var = net.encode(torch.from_numpy(X))
    encoding = client.encode(X)
    np.testing.assert_allclose(encoding.mean, mean, rtol=1e-4, atol=1e-5)
    assert encoding.log_var is not None
    np.testing.assert_allclose(encoding.log_var, log_var, rtol=1e-4, atol=1e-5)
    same(client.decode(encoding.mean).x, rows_of(net, encoding.mean))
    same(client.reconstruct(X).x, rows_of(net, encoding.mean))
    path = client.interpolate(DataPoint(X[0]), SampledPoint(3), steps=4, include_z=True)
    assert path.z is not None
    same(path.x, rows_of(net, path.z))


def test_samples_are_means_or_draws_that_a_seed_repeats(client: Client, net: VAE) -> None:
    means = client.sample(50, seed=7, include_z=True)
    draws = client.sample(50, seed=7, draw_x=True, include_z=True)
    assert means.z is not None
    np.testing.assert_array_equal(means.z, draws.z)
    same(means.x, rows_of(net, means.z))
    uniform = latents.uniform([NoiseRange(7, 0, 50, PRIOR)], len(COLUMNS))
    same(draws.x, rows_of(net, means.z, uniform))
    later = client.sample(10, seed=7, offset=40, draw_x=True)
    np.testing.assert_array_equal(later.x, draws.x[40:])
    assert (draws.x != means.x).any(1).all()


def test_scores_are_those_of_a_density_in_the_datas_units(client: Client, net: VAE) -> None:
    x = torch.from_numpy(X)
    with torch.no_grad():
        mean, log_var = net.encode(x)
        error, kl = net.distortion(mean, x), gaussian_kl(mean, log_var)
    found = client.reconstruct(X, include_scores=True, include_contributions=True)
    np.testing.assert_allclose(found.reconstruction_error, error, rtol=1e-4)
    assert found.contributions is not None
    assert found.contributions.shape == X.shape  # one for each column, also categorical
    np.testing.assert_allclose(found.contributions.sum(1), error, rtol=1e-4)
    np.testing.assert_allclose(found.elbo, -error - kl, rtol=1e-4)
    assert found.values_outside_range is None  # no value is refused, and none is outside
    scores = client.score(X, draws=200, seed=1)
    z = client.encode(np.repeat(X, 1, 0), draw=True, seed=1).z
    assert z is not None
    assert z.shape == (4, LATENTS)
    assert (scores.log_likelihood >= scores.elbo - 1e-3).all()
    assert scores.elbo[2] < scores.elbo[[0, 1, 3]].min()  # the row beyond the training rows


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (4, "row 0 holds 4 in column 'color'; its values are sent as 0 to 3"),
        (0.5, "row 0 holds 0.5 in column"),
        (-1, "row 0 holds -1 in column"),
        (np.nan, "row 0 holds NaN or infinity"),
    ],
)
def test_a_number_that_is_no_level_is_refused(client: Client, value: float, message: str) -> None:
    bad = X[:1].copy()
    bad[0, 1] = value
    with pytest.raises(InvalidArgument, match=message):
        client.score(bad)


def test_a_bad_row_of_a_stream_is_listed_and_the_others_are_answered(client: Client) -> None:
    bad = X.copy()
    bad[1, 3] = 7
    (found,) = client.stream_reconstruct([bad], include_scores=True)
    assert list(found.errors) == [1]
    np.testing.assert_allclose(
        found.elbo, client.reconstruct(X[[0, 2, 3]], include_scores=True).elbo, rtol=1e-5
    )


TABLE = {
    "open": [True, False, None, False],
    "pressure": [101_325, 101_000.0, 99_000, 101_400],
    "color": ["blue", "red", "violet", "green"],
    "leak": [2e-6, 1e-6, 9e-6, 2.2e-6],
    "comment": ["not", "a", "column", "here"],
}


def test_a_table_becomes_rows_and_rows_become_a_table(client: Client) -> None:
    info = client.get_model()
    with pytest.raises(InvalidArgument, match=r"row 2 .*column 'open' is missing"):
        info.to_rows(TABLE)
    whole = TABLE | {"open": ["TRUE", False, "?", "False"]}
    np.testing.assert_array_equal(info.to_rows(whole), X)
    table = info.to_table(X)
    assert table.dtype.names == ("pressure", "color", "leak", "open")
    assert table["color"].tolist() == ["blue", "red", "(other)", "green"]
    np.testing.assert_array_equal(info.to_rows(table), X)
    filled = whole | {"pressure": [None, 1, 1, 1], "color": ["blue", None, "red", "red"]}
    assert info.to_rows(filled)[:2].tolist() == [[101_325, 0, X[0, 2], 1], [1, 3, X[1, 2], 0]]


def test_levels_that_would_hide_nan_are_not_returned(tmp_path: Path) -> None:
    publish_table(tmp_path, columns=(COLUMNS[1], COLUMNS[3]), x=X[:, [1, 3]])
    z = np.full((2, LATENTS), 0.5, np.float32)
    z[1] = 3e38
    with server_starter() as start, Client(start(tmp_path).target) as client:
        assert client.decode(z[:1]).x.shape == (1, 2)
        with pytest.raises(InvalidArgument, match="z: row 1 makes the model compute NaN"):
            client.decode(z)


def test_a_table_with_a_bad_number_or_without_a_column_is_refused(client: Client) -> None:
    info = client.get_model()
    with pytest.raises(InvalidArgument, match="no column 'leak'"):
        info.to_rows({"open": [1], "pressure": [1], "color": [1]})
    with pytest.raises(InvalidArgument, match=r"row 0 .*column 'leak' holds 'much', not a number"):
        info.to_rows({"open": ["true"], "pressure": [1], "color": ["red"], "leak": ["much"]})
    with pytest.raises(InvalidArgument, match="column 'color' has 2 values; expected one for each"):
        info.to_rows({"open": ["true"], "pressure": [1], "color": ["red", "blue"], "leak": [1]})


def test_data_frames_go_in_and_out(client: Client) -> None:
    pd = pytest.importorskip("pandas")
    info = client.get_model()
    frame = info.to_frame(client.sample(5, seed=1, draw_x=True).x)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    rows = info.to_rows(frame)
    drawn = client.sample(5, seed=1, draw_x=True).x
    np.testing.assert_array_equal(rows[:, 1:], drawn[:, 1:])
    np.testing.assert_array_equal(rows[:, 0], np.rint(drawn[:, 0]))
    assert len(client.score(rows).elbo) == 5
    assert (frame.pressure % 1 == 0).all()  # as in the data
    with pytest.raises(InvalidArgument, match=r"a table with get_model\(\).to_rows\(table\)"):
        client.score(frame)
