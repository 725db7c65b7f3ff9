"""The images themselves, built and run by podman: `make test-images`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from latentd.client import Client, DataPoint
from latentd.pb import vae_pb2 as pb
from tests.support.server import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy/docker"
BASE = os.environ.get("LATENTD_BASE", "")
BUILD_FLAGS = shlex.split(os.environ.get("LATENTD_BUILD_FLAGS", ""))
OTHER_USER = "54321:54321"
MAX_MB = {"serving": 240, "jobs": 210}
"""What each may add to what it is built from, in millions of bytes."""
SECONDS = 180  # only broken code makes a test wait so long

if not BASE or shutil.which("podman") is None:
    pytest.skip("make test-images runs these", allow_module_level=True)


def podman(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(["podman", *map(str, command)], capture_output=True, text=True)
    assert not check or ran.returncode == 0, ran.stderr
    return ran


def inspect(image: str) -> dict:
    return json.loads(podman("image", "inspect", image).stdout)[0]


def build_image(target: str, tag: str, base: str = BASE) -> subprocess.CompletedProcess[str]:
    flags = ["--format=docker", f"--build-arg=BASE={base}", f"--target={target}", f"--tag={tag}"]
    return podman("build", *BUILD_FLAGS, *flags, "-f", DOCKER / "Dockerfile", ROOT, check=False)


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images of this working tree, by target."""
    tags = {target: f"localhost/latentd-test:{target}" for target in MAX_MB}
    for target, tag in tags.items():
        built = build_image(target, tag)
        assert built.returncode == 0, built.stderr
    return tags


@pytest.fixture
def models(publish_toy) -> Iterator[Path]:
    """Bundles that any user can read."""
    # Not under pytest's own folder, into which no other user can look.
    root = Path(tempfile.mkdtemp(prefix="latentd-models-"))
    publish_toy(root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield root
    shutil.rmtree(root)


@contextmanager
def running(*command: object) -> Iterator[str]:
    """The name of a container, which has printed that it listens; it is removed at the end."""
    name = f"latentd-test-{os.getpid()}-{free_port()}"
    try:
        podman("run", "--detach", "--name", name, *command)
        wait_for(name, "Listening on")
        yield name
    finally:
        podman("rm", "--force", "--time", 0, name, check=False)


def wait_for(name: str, text: str) -> None:
    with subprocess.Popen(
        ["podman", "logs", "--follow", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as logs:
        assert logs.stdout is not None
        lines = []
        for line in logs.stdout:
            lines.append(line.decode())
            if text in lines[-1]:
                logs.terminate()
                return
    pytest.fail("".join(lines))


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
        state = json.loads(podman("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] == 0
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


def pod(documents, models: Path, image: str) -> str:
    """The manifests as podman can play them: the bundles from a folder of this machine."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    kept = [d for d in documents if d["kind"] in ("ConfigMap", "Deployment")]
    for document in kept:
        document["metadata"].pop("namespace")
        if document["kind"] == "Deployment":
            document["spec"]["replicas"] = 1
            spec = document["spec"]["template"]["spec"]
            spec.pop("initContainers", None)  # it would fetch the bundles
            spec["volumes"] = [
                {"name": "models", "hostPath": {"path": str(models)}},
                {"name": "tmp", "emptyDir": {}},
            ]
            (container,) = spec["containers"]
            container["image"] = image
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                container.pop(probe)  # podman would run curl in the container
            container["ports"][0]["hostPort"] = free_port()
    return yaml.safe_dump_all(kept)


def test_pod_of_the_manifests_serves(build, images, models, tmp_path):
    text = pod(build("cpu", ["bundles-volume"]), models, images["serving"])
    file = tmp_path / "pod.yaml"
    file.write_text(text)
    port = re.findall(r"hostPort: (\d+)", text)[0]
    try:
        played = podman("kube", "play", file).stdout
        wait_for(played.partition("Container:")[2].strip(), "Listening on")
        call_every_method(f"127.0.0.1:{port}")
    finally:
        podman("kube", "down", file, check=False)
