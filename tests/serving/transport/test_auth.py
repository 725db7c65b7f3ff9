"""Bearer tokens: their scopes, and how they change while the server runs."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import codec
from latentd.__main__ import main
from latentd.errors import ConfigError, PermissionDenied, Unauthenticated
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.rpc.methods import ANY, METHODS, SCOPES, of_scope
from latentd.transport import handlers
from latentd.transport.auth import TokenStore
from latentd.transport.tokens import new_token

Codes = grpc.StatusCode
CONTRACT = pb.DESCRIPTOR.services_by_name["VaeService"]


class TokenFile:
    """A file of tokens, replaced by a rename as an operator would."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens.txt"
        self.file.touch()
        self.lines: dict[str, str] = {}

    def add(self, name: str, *scopes: str) -> str:
        token, self.lines[name] = new_token(name, list(scopes))
        self.write("\n".join(self.lines.values()))
        return token

    def write(self, content: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(content)
        os.replace(new, self.file)


@pytest.fixture
def tokens(tmp_path):
    return TokenFile(tmp_path)


def status_code(call, request, token: str = "") -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        call(request, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return Codes.OK


@pytest.mark.parametrize("kind", ["core", "aio"])
def test_call_needs_a_token_with_its_scope(start_server, toy_bundles, tokens, kind):
    maker = tokens.add("maker", "generate")
    reader = tokens.add("reader", "models", "infer")
    server = start_server(toy_bundles, tokens=tokens.file, listener=kind)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        sample = pb.SampleRequest(count=1)
        assert status_code(stub.Sample, sample) is Codes.UNAUTHENTICATED
        assert status_code(stub.Sample, sample, "guessed") is Codes.UNAUTHENTICATED
        assert status_code(stub.Sample, sample, maker) is Codes.OK
        assert status_code(stub.Sample, sample, reader) is Codes.PERMISSION_DENIED
        assert status_code(stub.GetModel, pb.GetModelRequest(), reader) is Codes.OK
        assert status_code(stub.GetModel, pb.GetModelRequest(), maker) is Codes.PERMISSION_DENIED
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == 1, "probes send no token"
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError) as refused:
            next(reflect(iter([b""])))
        assert refused.value.code() is Codes.UNAUTHENTICATED
    counted = server.metric(
        "latentd_requests_total", method="Sample", model="", code="UNAUTHENTICATED"
    )
    assert counted == 2


@pytest.mark.parametrize("kind", ["core", "aio"])
def test_interpolate_needs_infer_when_an_anchor_is_data(start_server, toy_bundles, tokens, kind):
    maker = tokens.add("maker", "generate")
    both = tokens.add("both", "generate", "infer")
    server = start_server(toy_bundles, tokens=tokens.file, listener=kind)
    x = pb.LatentAnchor(x=codec.to_rows(np.full((1, 4, 4), 51, np.uint8)))
    drawn = pb.LatentAnchor(sample=pb.SampledPoint(seed=1))
    z = pb.LatentAnchor(z=codec.to_tensor(np.ones((1, 16), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        interpolate = VaeServiceStub(channel).Interpolate

        def request(start: pb.LatentAnchor, end: pb.LatentAnchor) -> pb.InterpolateRequest:
            return pb.InterpolateRequest(start=start, end=end, steps=2, include_z=True)

        assert status_code(interpolate, request(drawn, z), maker) is Codes.OK
        for field, ends in {"start.x": (x, z), "end.x": (drawn, x)}.items():
            with pytest.raises(grpc.RpcError) as refused:
                interpolate(request(*ends), metadata=(("authorization", f"Bearer {maker}"),))
            assert refused.value.code() is Codes.PERMISSION_DENIED
            assert field in refused.value.details()
            assert 'scope "infer" required' in refused.value.details()
            assert status_code(interpolate, request(*ends), both) is Codes.OK


def test_method_table_has_every_method_of_both_contracts():
    assert set(METHODS) == {
        method.name
        for service in (handlers.VAE, handlers.OPEN_INFERENCE)
        for method in service.methods
    }
    assert {method.scope for method in METHODS.values()} == {*SCOPES, ANY}


@pytest.mark.parametrize("name", METHODS)
def test_server_does_not_start_when_the_table_lacks_a_method(
    start_server, toy_bundles, monkeypatch, name
):
    monkeypatch.delitem(METHODS, name)
    with pytest.raises(KeyError, match=name):
        start_server(toy_bundles)


def test_methods_with_data_x_need_infer():
    takes_x = {m.name for m in CONTRACT.methods if "x" in m.input_type.fields_by_name}
    assert takes_x | {"GetMap"} == set(of_scope("infer"))  # it returns rows of the training data


def test_tokens_are_reloaded_when_the_file_changes(start_server, toy_bundles, tokens):
    old = tokens.add("old", "generate")
    server = start_server(toy_bundles, tokens=tokens.file)
    with grpc.insecure_channel(server.target) as channel:
        sample, request = VaeServiceStub(channel).Sample, pb.SampleRequest(count=1)
        assert status_code(sample, request, old) is Codes.OK
        new = tokens.add("new", "generate")
        while status_code(sample, request, new) is not Codes.OK:
            pass  # the test's time limit ends this loop
        assert status_code(sample, request, old) is Codes.OK, "both, until the old one is removed"
        del tokens.lines["old"]
        tokens.write("\n".join(tokens.lines.values()))
        while status_code(sample, request, old) is not Codes.UNAUTHENTICATED:
            pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 2.0  # seconds: each call of `check` checks the file
        return self.now


def test_previous_tokens_stay_when_the_file_is_invalid(tokens, caplog):
    token = tokens.add("one", "infer")
    store = TokenStore(tokens.file, Clock())
    for wrong in ("nonsense", "one infer,admin sha256:" + "0" * 64, "# empty", "a b c d"):
        tokens.write(wrong)
        store.check(f"Bearer {token}", "infer")
        store.check(f"Bearer {token}", "infer")
    tokens.file.unlink()
    store.check(f"Bearer {token}", "infer")
    messages = [record.getMessage() for record in caplog.records]
    assert len([line for line in messages if "keeping the previous tokens" in line]) >= 5
    assert len([line for line in messages if "line 1" in line]) == 3, "each error is logged once"
    assert token not in caplog.text


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x"])
def test_other_headers_are_unauthenticated(tokens, header):
    token = tokens.add("one", "infer")
    with pytest.raises(Unauthenticated):
        TokenStore(tokens.file).check(header.format(token))


def test_rejection_names_the_scopes_of_the_token(tokens):
    token = tokens.add("one", "infer", "models")
    message = 'Scope "generate" required; token "one" has: infer, models.'
    with pytest.raises(PermissionDenied, match=message):
        TokenStore(tokens.file).check(f"Bearer {token}", "generate")


def test_invalid_file_is_a_config_error_at_start(tokens, tmp_path):
    for content, message in {
        "": "contains no tokens",
        "one infer": "line 1: expected NAME",
        "# comment\none admin sha256:" + "0" * 64: "line 2: unknown scope admin",
    }.items():
        tokens.write(content)
        with pytest.raises(ConfigError, match=message):
            TokenStore(tokens.file)
    with pytest.raises(ConfigError, match="No such file"):
        TokenStore(tmp_path / "missing")


def test_token_command_makes_a_token_and_its_line(capsys, tokens):
    assert main(["token", "jobs", "--scopes", "infer,models"]) == 0
    output = capsys.readouterr()
    tokens.write(output.err)
    TokenStore(tokens.file).check(f"Bearer {output.out.strip()}", "infer")
    assert main(["token", "jobs", "--scopes", "admin"]) == 2
    assert "unknown scope admin; valid scopes: models, generate, infer" in capsys.readouterr().err
