"""Images and pods, by podman; `make test-images` says on which base."""

from __future__ import annotations

import copy
import functools
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.manifests import one, pod_of
from tests.support.server import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy/docker"
BASE = os.environ.get("LATENTD_BASE", "")
BUILD_FLAGS = shlex.split(os.environ.get("LATENTD_BUILD_FLAGS", ""))


def require() -> None:
    """Skip the module where podman is not here, or not asked for."""
    if not BASE or shutil.which("podman") is None:
        pytest.skip("make test-images runs these", allow_module_level=True)


def podman(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(["podman", *map(str, command)], capture_output=True, text=True)
    assert not check or ran.returncode == 0, ran.stderr
    return ran


def inspect(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("image", "inspect", image).stdout)[0]
    return found


def state(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("inspect", container).stdout)[0]["State"]
    return found


def build_image(target: str, tag: str, base: str = BASE) -> subprocess.CompletedProcess[str]:
    flags = ["--format=docker", f"--build-arg=BASE={base}", f"--target={target}", f"--tag={tag}"]
    return podman("build", *BUILD_FLAGS, *flags, "-f", DOCKER / "Dockerfile", ROOT, check=False)


@functools.cache
def image(target: str) -> str:
    """The image of this working tree."""
    tag = f"localhost/latentd-test:{target}"
    built = build_image(target, tag)
    assert built.returncode == 0, built.stderr
    return tag


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


def wait_for(name: str, text: str) -> str:
    """The first line of a container's log, past or to come, with the text in it."""
    with subprocess.Popen(
        ["podman", "logs", "--follow", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as logs:
        assert logs.stdout is not None
        lines = []
        for line in logs.stdout:
            lines.append(line.decode())
            if text in lines[-1]:
                logs.terminate()
                return lines[-1]
    pytest.fail("".join(lines))


class Pod:
    """A server's pod of built manifests, played by podman on this machine.

    The test gives a folder for each volume, so there is no init container. There are no probes:
    podman would run curl in the container. Used with `with`, the pod is removed at the end.
    """

    def __init__(
        self,
        documents: Iterable[dict[str, Any]],
        image: str,
        volumes: Mapping[str, Path],
        scratch: Path,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """host, port: where the server listens on this machine; 0: any free port."""
        kept = [
            d for d in copy.deepcopy(list(documents)) if d["kind"] in ("ConfigMap", "Deployment")
        ]
        self.name = f"latentd-test-{os.getpid()}-{free_port()}"
        self._port, self._metrics_port = port or free_port(), free_port()
        self.target, self._host = f"{host}:{self._port}", host
        for document in kept:
            document["metadata"].pop("namespace")
        deployment, spec = one(kept, "Deployment"), pod_of(kept)
        deployment["metadata"]["name"], deployment["spec"]["replicas"] = self.name, 1
        self.grace_seconds: int = spec["terminationGracePeriodSeconds"]
        spec.pop("initContainers", None)
        for volume in spec["volumes"]:
            for kind in set(volume) - {"name", "emptyDir"}:
                volume.pop(kind)
            if volume["name"] in volumes:
                volume.pop("emptyDir", None)
                volume["hostPath"] = {"path": str(volumes[volume["name"]])}
        (container,) = spec["containers"]
        container["image"] = image
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            container.pop(probe)
        self._pre_stop_seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        for port_of, number in zip(
            container["ports"], (self._port, self._metrics_port), strict=True
        ):
            port_of |= {"hostPort": number, "hostIP": host}
        self._file = scratch / f"{self.name}.yaml"
        self._file.write_text("\n---\n".join(map(json.dumps, kept)))  # JSON is YAML
        self._pod = self.container = ""

    def __enter__(self) -> Self:
        """Start it, and wait until it serves."""
        try:
            played = podman("kube", "play", self._file).stdout.split()
            self._pod, self.container = (
                played[played.index(f"{n}:") + 1] for n in ("Pod", "Container")
            )
            wait_for(self.container, "Listening on")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        podman("kube", "down", self._file, check=False)

    @property
    def metrics(self) -> str:
        return f"http://{self._host}:{self._metrics_port}/metrics"

    def stop(self) -> int:
        """Stop it as the kubelet does; returns the server's exit status."""
        time.sleep(self._pre_stop_seconds)  # the hook of Kubernetes' own: the kubelet sleeps
        podman("pod", "stop", "--time", self.grace_seconds - self._pre_stop_seconds, self._pod)
        status: int = state(self.container)["ExitCode"]
        return status

    def log(self) -> str:
        ran = podman("logs", self.container)
        return ran.stdout + ran.stderr
