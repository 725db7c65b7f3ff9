"""TLS: which clients may connect, and certificates replaced while the server runs."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import grpc
import pytest
import trustme

from latentd.__main__ import main
from latentd.client import Client
from latentd.errors import ConfigError
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport.tls import Certificates


class CredentialFiles:
    """A server's certificate and key, each replaced by a rename, as in a mounted secret."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self._authority = authority
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.renew()

    def renew(self) -> bytes:
        """Issue a new certificate; returns it as PEM."""
        issued = self._authority.issue_cert("127.0.0.1", "localhost")
        self.replace(self.key, issued.private_key_pem.bytes())
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        self.replace(self.certificate, chain)
        return issued.cert_chain_pems[0].bytes()

    def replace(self, file: Path, content: bytes) -> None:
        new = file.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, file)

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_cert": self.certificate, "tls_key": self.key}


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    return CredentialFiles(tmp_path, authority)


@pytest.fixture(params=["core", "aio"])
def start(start_server, toy_bundles, files, request):
    def start(**chosen):
        return start_server(toy_bundles, listener=request.param, **files.settings, **chosen)

    return start


def trusting(authority: trustme.CA, **client: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), **client)


def sample(target: str, credentials: grpc.ChannelCredentials) -> bytes:
    with grpc.secure_channel(target, credentials) as channel:
        request = pb.SampleRequest(count=1, seed=7)
        return VaeServiceStub(channel).Sample(request, timeout=120).x.tensor.data


def server_certificate(target: str) -> bytes:
    """The certificate that a new connection gets, as DER."""
    host, _, port = target.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


def test_client_connects_over_tls_and_not_in_plain_text(start, authority):
    server = start()
    with Client(server.target, credentials=trusting(authority)) as client:
        assert client.sample(2, seed=7).x.shape[0] == 2
    with (
        grpc.insecure_channel(server.target) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=120)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError):  # a client that trusts another CA
        sample(server.target, trusting(trustme.CA()))
    assert sample(server.target, trusting(authority))


def test_mutual_tls_accepts_only_clients_of_its_ca(start, authority, tmp_path):
    ours = trustme.CA()
    client_ca = tmp_path / "clients.pem"
    ours.cert_pem.write_to_path(str(client_ca))
    server = start(tls_client_ca=client_ca)

    def client_of(ca: trustme.CA) -> grpc.ChannelCredentials:
        issued = ca.issue_cert("job@example.org")
        return trusting(
            authority,
            private_key=issued.private_key_pem.bytes(),
            certificate_chain=issued.cert_chain_pems[0].bytes(),
        )

    assert sample(server.target, client_of(ours))
    # The command-line client, with the same files.
    words = ["client", "model", "--server", server.target, "--tls-ca", tmp_path / "ca.pem"]
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mine = ours.issue_cert("job@example.org")
    mine.private_key_pem.write_to_path(str(tmp_path / "mine.key"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "mine.crt"))
    words += ["--tls-cert", tmp_path / "mine.crt", "--tls-key", tmp_path / "mine.key"]
    assert main(list(map(str, words))) == 0

    for other in (trusting(authority), client_of(trustme.CA())):
        with pytest.raises(grpc.RpcError) as refused:
            sample(server.target, other)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_certificate_is_reloaded_when_valid_and_kept_when_not(start, files, authority, caplog):
    server = start()
    first = server_certificate(server.target)
    with grpc.secure_channel(server.target, trusting(authority)) as channel:
        stub, request = VaeServiceStub(channel), pb.SampleRequest(count=1)
        stub.Sample(request)

        second = ssl.PEM_cert_to_DER_cert(files.renew().decode())
        assert second != first
        assert server_certificate(server.target) == second

        files.replace(files.certificate, b"not a certificate")
        assert server_certificate(server.target) == second
        files.replace(files.key, trustme.CA().issue_cert("elsewhere").private_key_pem.bytes())
        assert server_certificate(server.target) == second
        assert "keeping the previous one" in caplog.text
        files.certificate.unlink()
        assert server_certificate(server.target) == second

        third = ssl.PEM_cert_to_DER_cert(files.renew().decode())
        assert server_certificate(server.target) == third
        stub.Sample(request)  # the old connection still works
    assert sample(server.target, trusting(authority))


def test_unusable_files_are_a_config_error(files, tmp_path):
    Certificates(files.certificate, files.key)
    with pytest.raises(ConfigError, match="does not exist"):
        Certificates(files.certificate, tmp_path / "missing")
    with pytest.raises(ConfigError, match="certificate and private key do not match"):
        Certificates(files.key, files.certificate)
    files.replace(files.key, trustme.CA().issue_cert("elsewhere").private_key_pem.bytes())
    with pytest.raises(ConfigError, match="certificate and private key do not match"):
        Certificates(files.certificate, files.key)


@pytest.mark.parametrize(
    "flags",
    [{"tls_cert": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}],
    ids=lambda f: next(iter(f)),
)
def test_certificate_without_key_is_a_config_error(start_server, toy_bundles, flags):
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        start_server(toy_bundles, **flags)
