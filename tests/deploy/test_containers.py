"""The images themselves, built and run by podman: `make test-images`."""

from __future__ import annotations

import re
import shlex
import tomllib
import urllib.request

import numpy as np
import pytest

from latentd.client import Client, DataPoint
from latentd.pb import vae_pb2 as pb
from tests.support import podman as engine
from tests.support.podman import (
    BASE,
    DOCKER,
    ROOT,
    Pod,
    build_image,
    inspect,
    podman,
    running,
)
from tests.support.server import free_port

OTHER_USER = "54321:54321"
MAX_MB = {"serving": 240, "jobs": 210}
"""What each may add to what it is built from, in millions of bytes."""
SECONDS = 180  # only broken code makes a test wait so long

engine.require()


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images of this working tree, by target."""
    return {target: engine.image(target) for target in MAX_MB}


def readme_command() -> list[str]:
    """The arguments of the README's `docker run`, but for models, ports and the image."""
    (found,) = re.findall(r"^docker run ((?:.*\\\n)*.*)$", (DOCKER / "README.md").read_text(), re.M)
    words = shlex.split(found.replace("\\\n", ""))
    assert words[-1] == "latentd:0.1.0-cpu"
    kept = [w for w in words[:-1] if not re.search(r"/models|^-[vp]$|:\d+$", w)]
    assert kept == ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    return kept


def call_every_method(server: str) -> None:
    x = np.zeros((2, 4, 4), np.uint8)
    called = {}
    with Client(server, timeout=SECONDS) as client:
        called["ListModels"] = client.list_models()
        called["GetModel"] = client.get_model()
        called["GetMap"] = client.get_map()
        called["Encode"] = encoded = client.encode(x)
        called["Decode"] = client.decode(encoded.mean)
        called["Sample"] = client.sample(2, seed=7)
        called["StreamSamples"] = list(client.stream_samples(5, seed=7))
        called["Reconstruct"] = client.reconstruct(x)
        called["StreamReconstruct"] = list(client.stream_reconstruct([x, x]))
        called["Interpolate"] = client.interpolate(DataPoint(x[0]), DataPoint(x[1]), steps=3)
        called["Score"] = client.score(x)
    service = pb.DESCRIPTOR.services_by_name["VaeService"]
    assert called.keys() == set(service.methods_by_name)
    assert all(called.values())


@pytest.mark.parametrize("user", [None, OTHER_USER], ids=["own", "other"])
def test_readme_command_serves_and_stops(images, models, user):
    port, metrics = free_port(), free_port()
    places = ("-v", f"{models}:/models:ro", "-p", f"127.0.0.1:{port}:50051")
    as_user = ("--user", user) if user else ()
    command = [*readme_command(), *places, "-p", f"127.0.0.1:{metrics}:9464", *as_user]
    with running(*command, images["serving"]) as name:
        call_every_method(f"127.0.0.1:{port}")
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/readyz", timeout=60) as ready:
            assert ready.read() == b"SERVING\n"
        assert podman("exec", name, "id", "-u").stdout.strip() == (user or "10001").split(":")[0]
        assert podman("exec", name, "touch", "/opt/latentd/x", check=False).returncode
        podman("healthcheck", "run", name)
        podman("stop", "--time", SECONDS, name)
        assert engine.state(name)["ExitCode"] == 0
        logs = podman("logs", name)
        assert "Stopped." in logs.stdout + logs.stderr


def test_sizes_are_bounded(images, record_property):
    before, figures = inspect(BASE)["Size"], {}
    for target, limit in MAX_MB.items():
        size = inspect(images[target])["Size"]
        figures[target] = round((size - before) / 1e6)
        assert figures[target] <= limit, f"{target} adds {figures[target]} MB"
        before = size
    record_property("figures", figures)


def test_jobs_are_built_on_serving(images):
    layers = {target: inspect(tag)["RootFS"]["Layers"] for target, tag in images.items()}
    assert layers["jobs"][: len(layers["serving"])] == layers["serving"]


def test_nothing_of_the_build_is_left(images):
    look = (
        "test ! -e /etc/pip.conf && test ! -e /build && test ! -e /before && test ! -e /added"
        " && test -z \"$(find / -xdev -name '*.pip-*' -o -xdev -path '*/pip/cache' 2>/dev/null)\""
        " && find /etc/ssl /usr/local/share/ca-certificates -type f | sort | xargs -r sha256sum"
    )
    shell = ("run", "--rm", "--network=none", "--entrypoint", "sh")
    bundles = {
        image: podman(*shell, image, "-c", look).stdout for image in (BASE, *images.values())
    }
    assert len(set(bundles.values())) == 1, "the certificates are the base's own"
    own = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "ORT_DISABLE_TELEMETRY"}
    own |= {"RAY_USAGE_STATS_ENABLED", "TMPDIR", "LATENTD_BUNDLES", "LATENTD_HOST"}
    own |= {"LATENTD_LOG_FORMAT"}
    for image in images.values():
        variables = {line.partition("=")[0] for line in inspect(image)["Config"]["Env"]}
        base = {line.partition("=")[0] for line in inspect(BASE)["Config"]["Env"]}
        assert variables - base <= own


def test_labels_describe_the_image(images):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"version": project["version"], "licenses": project["license"], "title": "latentd"}
    wanted["description"] = project["description"]
    for image in images.values():
        labels = inspect(image)["Config"]["Labels"]
        assert {key: labels[f"org.opencontainers.image.{key}"] for key in wanted} == wanted


def test_old_python_is_refused(tmp_path):
    claims = "import sys; sys.version_info = (3, 11, 3, 'final', 0)"
    (tmp_path / "sitecustomize.py").write_text(claims)
    lines = [f"FROM {BASE}", "COPY sitecustomize.py /old/", "ENV PYTHONPATH=/old"]
    (tmp_path / "Dockerfile").write_text("\n".join(lines))
    tag = "localhost/latentd-test:old-python"
    podman("build", "--format=docker", "--tag", tag, tmp_path)
    refused = build_image("serving", "localhost/latentd-test:refused", tag)
    assert refused.returncode
    assert "BASE has Python 3.11.3" in refused.stderr + refused.stdout


def test_jobs_image_runs_a_job(images, models, tmp_path):
    work = models / "work"
    work.mkdir(mode=0o777)
    work.chmod(0o777)
    np.save(work / "rows.npy", np.zeros((10, 4, 4), np.uint8))
    places = (*readme_command(), "--network=none", "-v", f"{models}:/models")
    job = "batch --input /models/work/rows.npy --bundle /models/toy --output /models/work/out"
    podman("run", "--rm", *places, images["jobs"], *job.split())
    assert (work / "out/_SUCCESS").exists()


def test_pod_of_the_manifests_serves(build, images, models, tmp_path):
    documents = build("cpu", ["bundles-volume"])
    with Pod(documents, images["serving"], {"models": models}, tmp_path) as pod:
        call_every_method(pod.target)
