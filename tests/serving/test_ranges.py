"""Values at the bounds of a model's range and outside: the rule, and a server that applies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from latentd import codec, ranges
from latentd.__main__ import main
from latentd.bundle import DataSpec
from latentd.client import Client, DataPoint
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.echo_bundle import SIZE, publish_echo

UNIT = DataSpec("vector", (2,), "float32", (0.0, 1.0), bounded=True)
UNBOUNDED = DataSpec("vector", (2,), "float32", (0.0, 1.0), bounded=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("x", [UNIT, UNBOUNDED])
def test_value_within_rounding_of_a_bound_becomes_the_bound(dtype, x):
    sent = np.array([[1 + 2**-20, 0.5], [1.0000000000000002, -1e-7]], dtype)
    checked = ranges.check(sent, x)
    assert checked.values.tolist() == [[1, 0.5], [1, 0]]
    assert checked.values.dtype == dtype
    assert (checked.values_outside_range, checked.rejected) == (None, {})
    assert sent[0, 0] > 1, "the input is not changed"


def test_rounding_is_relative_to_the_width_of_the_range():
    wide = DataSpec("vector", (1,), "float32", (-100.0, 900.0), bounded=False)
    values = np.array([[900.0009], [900.002], [-100.0009]])
    checked = ranges.check(values, wide)
    assert checked.values.tolist() == [[900], [900.002], [-100]]
    assert checked.values_outside_range.tolist() == [0, 1, 0]


def test_values_outside_the_range_are_counted_per_row():
    values = np.array([[0, 1], [1.165, -3], [0.5, 7]], np.float32)
    checked = ranges.check(values, UNBOUNDED)
    assert checked.values is values or np.array_equal(checked.values, values)
    assert checked.values_outside_range.tolist() == [0, 2, 1]
    assert checked.rejected == {}


def test_row_is_rejected_when_its_likelihood_is_not_defined():
    values = np.array([[0, 1], [0.5, 1.165]], np.float32)
    rejected = ranges.check(values, UNIT).rejected
    assert list(rejected) == [1]
    assert "holds 1.165, outside the model's range 0 to 1" in rejected[1]
    assert "its likelihood is not defined" in rejected[1]


@pytest.mark.parametrize("range_", [(0.0, 1.0), (-np.inf, np.inf)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_always_rejected(value, range_):
    values = np.array([[0, 1], [2, value]], np.float32)
    x = dataclasses.replace(UNBOUNDED, range=range_)
    assert ranges.check(values, x).rejected == {1: "holds NaN or infinity"}


def test_all_finite_numbers_are_in_a_range_without_bounds():
    largest = np.finfo(np.float32).max
    values = np.array([[0, largest], [-largest, 1e-45]], np.float32)
    checked = ranges.check(values, dataclasses.replace(UNBOUNDED, range=(-np.inf, np.inf)))
    assert (checked.values is values, checked.values_outside_range, checked.rejected) == (
        True,
        None,
        {},
    )


def test_values_in_the_range_are_not_copied():
    for values in (np.ones((3, 2), np.float32), np.full((3, 2), 255, np.uint8)):
        x = UNIT if values.dtype == np.float32 else DataSpec("vector", (2,), "uint8", (0.0, 255.0))
        assert ranges.check(values, x).values is values


@pytest.fixture(scope="module")
def server(tmp_path_factory, module_servers):
    """Serves a gaussian and a bernoulli model of numbers from 0 to 1."""
    root = tmp_path_factory.mktemp("numbers")
    publish_echo(root, "gaussian", "gaussian")
    publish_echo(root, "bernoulli", "bernoulli")
    return module_servers(root, default_model="gaussian")


@pytest.fixture(scope="module")
def client(server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


X = np.array([[0.5] * SIZE, [1.5, -2, 0, 1 + 2**-20], [1] * SIZE], np.float32)
OUTSIDE = [0, 2, 0]


def test_responses_count_values_outside_the_range(client):
    encoded = client.encode(X)
    assert encoded.values_outside_range.tolist() == OUTSIDE
    assert encoded.mean[1].tolist() == [1.5, -2, 0, 1], "rounding is removed, the rest unchanged"
    assert client.reconstruct(X, include_scores=True).values_outside_range.tolist() == OUTSIDE
    scored = client.score(X, draws=64)
    assert scored.values_outside_range.tolist() == OUTSIDE
    assert np.isfinite(scored.log_likelihood).all()
    path = client.interpolate(DataPoint(X[0]), DataPoint(X[1]), steps=3)
    assert path.values_outside_range.tolist() == [0, 2]
    assert client.encode(X[:1]).values_outside_range is None


def test_outlier_has_the_lowest_elbo(client):
    x = np.full((3, SIZE), 0.5, np.float32)
    x[1] = 40.0
    assert np.argmin(client.score(x, draws=64).elbo) == 1


def test_stream_counts_only_the_rows_it_returns(client):
    rows = X.copy()
    rows[0, 0] = np.nan
    (answer,) = client.stream_reconstruct(iter([rows]), include_scores=True)
    assert answer.errors == {0: "holds NaN or infinity"}
    assert answer.values_outside_range.tolist() == OUTSIDE[1:]


def test_bernoulli_model_names_the_row_outside_its_range(server, client):
    x = np.array([[0.5] * SIZE, [1 + 2**-20] * SIZE, [1.165] * SIZE], np.float32)
    assert client.encode(x[:2], model="bernoulli").mean.max() == 1
    with grpc.insecure_channel(server.target) as channel:
        request = pb.EncodeRequest(model="bernoulli", x=codec.to_rows(x))
        with pytest.raises(grpc.RpcError) as refused:
            VaeServiceStub(channel).Encode(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = refused.value.details()
    assert details.startswith("x.tensor.data: row 2 holds 1.165, outside the model's range 0 to 1")
    assert "its likelihood is not defined" in details


def test_client_command_counts_rows_outside_the_range(server, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    flags = [str(tmp_path / "x.npy"), "--server", server.target]
    for call in (["encode", "--out", str(tmp_path / "z.npz")], ["reconstruct"], ["score"]):
        assert main(["client", *call, *flags]) == 0
        assert "1 of 3 rows hold values outside the range" in capsys.readouterr().out
    assert np.load(tmp_path / "z.npz")["values_outside_range"].tolist() == OUTSIDE


def test_value_just_outside_the_range_is_shown_with_its_digits():
    x = DataSpec("vector", (1,), "float32", (0.0, 1.0))
    (reason,) = ranges.check(np.array([[1.00001]]), x).rejected.values()
    assert "holds 1.00001, outside" in reason


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_model_without_a_range_takes_every_finite_number(dtype):
    unknown = DataSpec("vector", (2,), "float32", (-np.inf, np.inf), bounded=False)
    values = np.array([[1e38, -7], [np.inf, 0], [0, -np.inf], [np.nan, 0], [0, 0]], dtype)
    checked = ranges.check(values, unknown)
    assert checked.rejected == dict.fromkeys((1, 2, 3), "holds NaN or infinity")
    assert ranges.check(values[:1], unknown).values_outside_range is None
