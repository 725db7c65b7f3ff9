"""Which provider runs the graphs, and the message when the requested one is not available."""

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
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that finds a GPU."""
    monkeypatch.setattr(provider, "unavailable_reason", lambda: "")


@pytest.fixture
def fake_gpu(fake_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver and CUDA's libraries. The sessions are real: they fall back to the CPU."""
    monkeypatch.setattr(provider, "_missing_library", lambda: "")
    monkeypatch.setattr(cuda, "unavailable_reason", lambda: "")


def test_auto_logs_the_fallback_without_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    if not provider.unavailable_reason():
        pytest.skip("this machine has a GPU")
    with caplog.at_level(logging.WARNING):
        assert Provider("auto").name == CPU
    assert f"Using {CPU}: " in caplog.text


def test_cuda_raises_without_a_gpu() -> None:
    if not provider.unavailable_reason():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"CUDA requested but not available: .*--provider"):
        Provider("cuda")


def test_reason_names_the_package_when_the_runtime_has_no_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert "install onnxruntime-gpu" in provider.unavailable_reason()


def test_missing_library_is_named_with_its_package(
    fake_driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if not provider._missing_library():
        pytest.skip("no library is missing")
    with pytest.raises(ConfigError, match=r"lib\w+\.so\.\d+ cannot be loaded; install \S+"):
        Provider("cuda")
    assert Provider("auto").name == CPU
    assert not capsys.readouterr().out  # ONNX Runtime's helper would print the missing ones


def test_verify_detects_a_session_that_fell_back(
    fake_gpu: None, toy_bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = (toy_bundles / "toy" / "1" / DECODER).read_bytes()
    session = ort.InferenceSession(graph, providers=[CPU])
    with pytest.raises(ConfigError, match=r"CUDA requested but not available: .* log output"):
        Provider("cuda").verify(session)
    chosen = Provider("auto")
    assert not chosen.on_cpu
    chosen.verify(session)
    assert chosen.on_cpu
    assert f"Using {CPU}: " in caplog.text


def test_options_of_a_session(fake_gpu: None) -> None:
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


def test_session_factory_from_settings() -> None:
    engine = SessionFactory.from_settings(Settings(provider="cpu"))
    assert engine.on_cpu
    assert engine.provider == CPU
