"""Which provider runs the graphs, and what is said when it cannot be the one asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime as ort
import pytest

from latentd.bundle import DECODER
from latentd.errors import ConfigError
from latentd.runtime import cuda, provider
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import CPU, CUDA, Provider
from latentd.settings import Settings


@pytest.fixture
def as_if_with_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds a GPU."""
    monkeypatch.setattr(provider, "problem", lambda: "")


@pytest.fixture
def as_if_with_a_gpu(as_if_with_a_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And CUDA's libraries. The sessions are real, and fall back as they do."""
    monkeypatch.setattr(provider, "_missing_library", lambda: "")
    monkeypatch.setattr(cuda, "refusal", lambda: "")


def test_no_gpu_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    if not provider.problem():
        pytest.skip("this machine has a GPU")
    with caplog.at_level(logging.WARNING):
        assert Provider("auto").name == CPU
    assert f"Provider: {CPU}, because" in caplog.text


def test_a_gpu_that_was_asked_for_is_never_replaced_in_silence() -> None:
    if not provider.problem():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"CUDA was asked for and cannot be had: .*--provider"):
        Provider("cuda")


def test_a_runtime_without_cuda_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert "install onnxruntime-gpu" in provider.problem()


def test_a_library_that_is_missing_is_named_with_what_brings_it(
    as_if_with_a_driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if not provider._missing_library():
        pytest.skip("every library is here")
    with pytest.raises(ConfigError, match=r"lib\w+\.so\.\d+ cannot be loaded; install \S+"):
        Provider("cuda")
    assert Provider("auto").name == CPU
    assert not capsys.readouterr().out  # ONNX Runtime's helper would print what it has not found


def test_a_session_that_fell_back_is_found_out(
    as_if_with_a_gpu: None, toy_bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = (toy_bundles / "toy" / "1" / DECODER).read_bytes()
    session = ort.InferenceSession(graph, providers=[CPU])
    with pytest.raises(ConfigError, match=r"CUDA was asked for and cannot be had: .* its own"):
        Provider("cuda").confirm(session)
    chosen = Provider("auto")
    assert not chosen.on_cpu
    chosen.confirm(session)
    assert chosen.on_cpu
    assert f"Provider: {CPU}, because" in caplog.text


def test_what_a_session_is_told(as_if_with_a_gpu: None) -> None:
    assert Provider("cpu").options(cuda_graph=True, stream=4096) == [CPU]
    (name, cuda), last = Provider("cuda", gpu_arena_limit_mib=3).options(
        cuda_graph=True, stream=4096
    )
    assert (name, last) == (CUDA, CPU)
    assert cuda["gpu_mem_limit"] == str(3 << 20)
    assert (cuda["enable_cuda_graph"], cuda["user_compute_stream"]) == ("1", "4096")
    assert (cuda["cudnn_conv_algo_search"], cuda["use_tf32"]) == ("HEURISTIC", "0")
    (_, cuda), _ = Provider("cuda").options()
    assert "user_compute_stream" not in cuda
    assert "gpu_mem_limit" not in cuda
    assert cuda["enable_cuda_graph"] == "0"


def test_an_engine_of_settings() -> None:
    engine = SessionFactory.from_settings(Settings(provider="cpu"))
    assert engine.on_cpu
    assert engine.provider == CPU
