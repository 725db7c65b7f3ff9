"""Values at the ends of a model's range and beyond: the rule, and a server that follows it."""

from __future__ import annotations

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

UNIT = DataSpec("vector", (2,), "float32", (0.0, 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_value_within_rounding_of_a_bound_is_the_bound(dtype, likelihood):
    sent = np.array([[1 + 2**-20, 0.5], [1.0000000000000002, -1e-7]], dtype)
    checked = ranges.check(sent, UNIT, likelihood)
    assert checked.values.tolist() == [[1, 0.5], [1, 0]]
    assert checked.values.dtype == dtype
    assert (checked.outside, checked.refused) == (None, {})
    assert sent[0, 0] > 1, "what came is not changed"


def test_rounding_is_a_part_of_the_ranges_width():
    wide = DataSpec("vector", (1,), "float32", (-100.0, 900.0))
    values = np.array([[900.0009], [900.002], [-100.0009]])
    checked = ranges.check(values, wide, "gaussian")
    assert checked.values.tolist() == [[900], [900.002], [-100]]
    assert checked.outside.tolist() == [0, 1, 0]


def test_values_beyond_the_range_are_counted_by_row():
    values = np.array([[0, 1], [1.165, -3], [0.5, 7]], np.float32)
    checked = ranges.check(values, UNIT, "gaussian")
    assert checked.values is values or np.array_equal(checked.values, values)
    assert checked.outside.tolist() == [0, 2, 1]
    assert checked.refused == {}


def test_a_likelihood_that_is_not_defined_there_refuses_them_and_says_why():
    values = np.array([[0, 1], [0.5, 1.165]], np.float32)
    for likelihood in ("bernoulli", "discretised-logistic"):
        refused = ranges.check(values, UNIT, likelihood).refused
        assert list(refused) == [1]
        assert "holds 1.165, outside the model's range 0 to 1" in refused[1]
        assert f"its {likelihood} likelihood is not defined" in refused[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_always_refused(value):
    values = np.array([[0, 1], [2, value]], np.float32)
    assert ranges.check(values, UNIT, "gaussian").refused == {1: "holds NaN or infinity"}


def test_what_lies_in_the_range_is_not_copied():
    for values in (np.ones((3, 2), np.float32), np.full((3, 2), 255, np.uint8)):
        x = UNIT if values.dtype == np.float32 else DataSpec("vector", (2,), "uint8", (0.0, 255.0))
        assert ranges.check(values, x, "gaussian").values is values


@pytest.fixture(scope="module")
def server(tmp_path_factory, module_servers):
    """Of a gaussian and a bernoulli model of numbers from 0 to 1."""
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


def test_every_answer_about_data_says_how_much_of_it_is_outside_the_range(client):
    encoded = client.encode(X)
    assert encoded.values_outside_range.tolist() == OUTSIDE
    assert encoded.mean[1].tolist() == [1.5, -2, 0, 1], "rounding is gone, the rest is as sent"
    assert client.reconstruct(X, include_scores=True).values_outside_range.tolist() == OUTSIDE
    scored = client.score(X, draws=64)
    assert scored.values_outside_range.tolist() == OUTSIDE
    assert np.isfinite(scored.log_likelihood).all()
    way = client.interpolate(DataPoint(X[0]), DataPoint(X[1]), steps=3)
    assert way.values_outside_range.tolist() == [0, 2]
    assert client.encode(X[:1]).values_outside_range is None


def test_the_strangest_row_has_the_lowest_score(client):
    x = np.full((3, SIZE), 0.5, np.float32)
    x[1] = 40.0
    assert np.argmin(client.score(x, draws=64).elbo) == 1


def test_a_stream_counts_the_rows_it_answers(client):
    rows = X.copy()
    rows[0, 0] = np.nan
    (answer,) = client.stream_reconstruct(iter([rows]), include_scores=True)
    assert answer.errors == {0: "holds NaN or infinity"}
    assert answer.values_outside_range.tolist() == OUTSIDE[1:]


def test_a_bernoulli_model_refuses_them_by_row(server, client):
    x = np.array([[0.5] * SIZE, [1 + 2**-20] * SIZE, [1.165] * SIZE], np.float32)
    assert client.encode(x[:2], model="bernoulli").mean.max() == 1
    with grpc.insecure_channel(server.target) as channel:
        request = pb.EncodeRequest(model="bernoulli", x=codec.to_rows(x))
        with pytest.raises(grpc.RpcError) as refused:
            VaeServiceStub(channel).Encode(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    said = refused.value.details()
    assert said.startswith("x.tensor.data: row 2 holds 1.165, outside the model's range 0 to 1")
    assert "bernoulli likelihood is not defined" in said


def test_the_shell_says_how_many_rows_are_outside_the_range(server, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    flags = [str(tmp_path / "x.npy"), "--server", server.target]
    for call in (["encode", "--out", str(tmp_path / "z.npz")], ["reconstruct"], ["score"]):
        assert main(["client", *call, *flags]) == 0
        assert "1 of 3 rows hold values outside the range" in capsys.readouterr().out
    assert np.load(tmp_path / "z.npz")["values_outside_range"].tolist() == OUTSIDE
