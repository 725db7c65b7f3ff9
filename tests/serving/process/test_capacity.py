"""`latentd plan`: the arithmetic on invented profiles, and the command on a real bundle."""

from __future__ import annotations

import dataclasses
import re

import pytest

from latentd import __main__
from latentd.models.loading import LoadedModel, ProfiledGraph
from latentd.models.profile import MeasuredProfile, SizeProfile
from latentd.process import capacity
from latentd.process.capacity import CALL_SECONDS, CALLS, Workload
from latentd.runtime.profiling import BatchTiming
from latentd.settings import Settings
from tests.support.spatial_bundle import publish_spatial

TWO = Settings(workers=2)
MIB = 1 << 20


def loaded(encoder_seconds: float, decoder_seconds: float) -> LoadedModel:
    """Graphs that run 10 rows in this many seconds."""
    encoder, decoder = (
        ProfiledGraph(
            None,
            None,
            MeasuredProfile(
                *(0, 1, 10),
                [SizeProfile((4,), 4, [BatchTiming(1, seconds), BatchTiming(10, seconds)])],
            ),
        )  # type: ignore[arg-type]
        for seconds in (encoder_seconds, decoder_seconds)
    )
    return LoadedModel(None, "", encoder, decoder, 0.0)  # type: ignore[arg-type]


def test_call_costs_its_rows_in_every_graph():
    graphs = loaded(0.1, 0.3)
    for call, rows_seconds in {"encode": 0.01, "sample": 0.03, "reconstruct": 0.04}.items():
        found = capacity.compute(Workload(call, 1, 5, 0.5), graphs, TWO, 0)
        assert found.seconds == pytest.approx(CALL_SECONDS + 5 * rows_seconds), call


def test_score_costs_run_and_likelihood_per_draw():
    workload = Workload("score", 1, 5, 0.5, draws=7)
    found = capacity.compute(workload, loaded(0.1, 0.3), TWO, 0, likelihood_seconds=0.02)
    row_seconds = 0.01 + 7 * (0.03 + 0.02)
    assert found.seconds == pytest.approx(CALL_SECONDS + 5 * row_seconds)
    assert found.queue_rows == round(2 / found.seconds * 5 * 7 * 0.1)


def test_score_without_distributions_is_rejected(publish_toy, tmp_path, capsys):
    publish_toy(tmp_path, posterior="point")
    flags = ["--bundles", str(tmp_path), "--provider", "cpu", "--workers", "1", "--rate", "1"]
    assert __main__.main(["plan", *flags, "--call", "score"]) == 78
    assert "toy encodes each row to a point" in capsys.readouterr().err


def test_replicas_include_a_spare():
    graphs = loaded(0.0, 0.1)
    for rate in (1, 10, 99, 1000):
        found = capacity.compute(Workload("sample", rate, 10, 0.6), graphs, TWO, 0)
        each = found.rate / found.replicas
        assert each == pytest.approx(2 / found.seconds)
        assert (found.replicas - 1) * each * 0.6 >= rate
        assert (found.replicas - 2) * each * 0.6 < rate, "one more than needed"


def test_memory_includes_queues_and_a_trial():
    small = dataclasses.replace(
        TWO, queue_mib=16, max_unsent_response_mib=8, max_partial_request_mib=4
    )
    found = capacity.compute(Workload("sample", 1, 1, 0.6), loaded(0.1, 0.1), small, 100 * MIB)
    assert found.memory_bytes == 200 * MIB
    assert found.memory_limit_bytes == 300 * MIB + 2 * (2 * 16 + 8 + 4) * MIB


def test_queue_rows_are_a_tenth_of_a_second():
    found = capacity.compute(Workload("sample", 1, 10, 0.6), loaded(0.0, 0.1), TWO, 0)
    assert found.queue_rows == round(10 * 0.1 * 2 / found.seconds)


def test_plan_offers_all_calls(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["plan", "--call", "nonsense", "--rate", "1"])
    assert set(re.findall(r"'(\w+)'", capsys.readouterr().err)) - {"nonsense"} == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_plan_of_a_real_bundle(toy_bundles, capsys, call):
    flags = ["--bundles", str(toy_bundles), "--provider", "cpu", "--workers", "3"]
    status = __main__.main(["plan", *flags, "--rate", "200", "--rows", "4", "--call", call])
    message = capsys.readouterr().out
    assert status == 0
    drawn = " of 16 draws" if call == "score" else ""
    assert f"200 {call} calls a second, 4 row(s){drawn} each, of toy version 1" in message
    assert re.search(r"^replicas +\d+ ", message, re.M)
    assert re.search(r"^workers +3 ", message, re.M)
    request, limit = map(int, re.findall(r"^memory, \w+ +(\d+)Mi", message, re.M))
    assert limit - request == pytest.approx(request / 3 + 3 * (2 * 256 + 256 + 128), abs=96)
    assert request > 3 * 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "0"], "--rate, --rows and --draws must be above 0"),
        (["--rate", "1", "--target-utilization", "2"], "--target-utilization above 0"),
        (["--rate", "1", "--workers", "many"], "--workers=many"),
        (["--rate", "1", "--default-model", "nobody"], "There is no version of a model in"),
    ],
)
def test_invalid_plan_flags_are_reported(toy_bundles, capsys, flags, message):
    assert __main__.main(["plan", "--bundles", str(toy_bundles), *flags]) == 78
    assert message in capsys.readouterr().err


def test_plan_with_a_models_folder_suggests_the_root(toy_bundles, capsys):
    assert __main__.main(["plan", "--bundles", str(toy_bundles / "toy"), "--rate", "1"]) == 78
    assert f"Did you mean {toy_bundles}?" in capsys.readouterr().err


def test_plan_needs_a_model_if_there_are_several(publish_toy, tmp_path, capsys):
    publish_toy(tmp_path, "one")
    publish_toy(tmp_path, "two")
    assert __main__.main(["plan", "--bundles", str(tmp_path), "--rate", "1"]) == 78
    assert "one of the models in" in capsys.readouterr().err


def test_sample_of_a_model_without_a_prior_is_not_planned(tmp_path, capsys):
    publish_spatial(tmp_path, prior=None)
    assert __main__.main(["plan", "--bundles", str(tmp_path), "--rate", "1"]) == 78
    assert "--call sample: spatial has no prior, so there is no" in capsys.readouterr().err
