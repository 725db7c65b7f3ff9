"""The images, as far as they can be shown without a container engine: the steps of the build, in an
empty directory as the image's own user, and what they make, run on read-only file systems."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import running

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy/docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
USER = int(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.M)[0])

AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
NO_CAPABILITIES = ["--inh-caps=-all", "--bounding-set=-all"]
READ_ONLY = """
set -e
mount --make-rprivate /
cut -d ' ' -f 5 /proc/self/mountinfo | while read -r path; do
    case $path in /proc*|/dev*|/sys*) ;; *) mount -o remount,bind,ro "$path" ;; esac
done
mount -t tmpfs -o mode=1777 tmpfs "$TMPDIR"
exec "$@"
"""


def stages() -> dict[str, str]:
    """Each stage's instructions by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def copied(stage: str) -> list[tuple[str, str]]:
    """What a stage copies out of the source tree: pairs of a path and its target."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", stages()[stage], re.M)
    return [(source, words[-1]) for words in map(str.split, lines) for source in words[:-1]]


def test_images_follow_the_rules():
    froms = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)}
    assert f"USER {USER}:{USER}" in stages()["runtime"]
    assert (froms["serving"], froms["jobs"], froms["training"]) == ("runtime", "serving", "runtime")
    for name in ("serving", "jobs", "training"):
        assert "COPY --from=build" in stages()[name], "only what the build left is taken over"
        assert not copied(name)
        assert "USER" not in stages()[name]
    assert set(froms.values()) == {"${BASE}", "sources", "build", "runtime", "serving"}
    assert re.search(r"^ARG BASE$", DOCKERFILE, re.M), "no base but the one that is named"


def test_images_disable_telemetry():
    for setting in ("ORT_DISABLE_TELEMETRY=1", "RAY_USAGE_STATS_ENABLED=0"):
        assert setting in stages()["runtime"]


def test_build_context_is_minimal():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert {source for source, _ in copied("sources")} == allowed
    assert all((ROOT / source).exists() for source, _ in copied("sources"))


def test_hadolint_and_shellcheck_find_nothing():
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint, shellcheck = (shutil.which(name, path=places) for name in ("hadolint", "shellcheck"))
    if not (hadolint and shellcheck):
        pytest.skip("hadolint and shellcheck are not here: make test-operate installs them")
    subprocess.run([hadolint, DOCKER / "Dockerfile"], check=True)
    scripts = [DOCKER / "install.sh", ROOT / "deploy/demo.sh"]
    subprocess.run([shellcheck, *scripts], check=True)


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """A directory like the build's, with `tree` made by the build's steps, of another user."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become the image's user")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace is to be had here")
    # Not under pytest's own folder, into which no other user can look.
    here = Path(tempfile.mkdtemp(prefix="latentd-image-"))
    build, opt = here / "build", here / "opt"
    for folder in (build, opt):
        folder.mkdir()
    for source, target in copied("sources"):
        place = build / (Path(source).name if target == "./" else target)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, place)
    for path in (here, *here.rglob("*")):
        os.chown(path, USER, USER)
    # Debian's own Python, as any user can run it; of the environment only where pip finds packages.
    kept = {name: value for name, value in os.environ.items() if name.lower().startswith("pip_")}
    environment = kept | {"PATH": "/usr/bin:/bin", "HOME": str(build)}
    command = [*AS_USER, "./install.sh", "cpu", str(opt / "latentd")]
    subprocess.run(command, cwd=build, env=environment, check=True)
    for path in (opt, *opt.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    yield opt / "latentd"
    shutil.rmtree(here)


@pytest.mark.slow
def test_serving_image_has_no_torch_compiler_or_pip(installed):
    packages = {p.name for p in installed.glob("lib/python3*/site-packages/*")}
    assert "onnxruntime" in packages
    assert not packages & {"torch", "onnx", "sklearn", "matplotlib", "pip", "setuptools"}
    assert not [p.name for p in (installed / "bin").iterdir() if p.name in ("cc", "gcc", "pip")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_entry_point_serves_on_read_only_file_systems(installed, publish_toy, workers):
    models = installed.parent.parent / "models"
    if not models.exists():
        publish_toy(models)
        for path in (models, *models.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    writable = models.parent / "writable"
    writable.mkdir(exist_ok=True)
    lines = stages()["runtime"] + stages()["serving"]
    settings = dict(re.findall(r"(LATENTD_\w+|PYTHON\w+)=(\S+)", lines))
    environment = settings | {
        "PATH": f"{installed}/bin:/usr/bin:/bin",
        "TMPDIR": str(writable),
        "LATENTD_BUNDLES": str(models),
        "LATENTD_HOST": "127.0.0.1",
        "LATENTD_PORT": "0",
        "LATENTD_METRICS_PORT": "0",
        "LATENTD_WORKERS": workers,
        "LATENTD_LAME_DUCK_SECONDS": "0",
    }
    probe = (
        'import os, pathlib, sys; home = pathlib.Path(sys.prefix, "x")\n'
        "try: home.write_text('')\n"
        'except OSError as error: print(os.getuid(), error.strerror)\nelse: print("writable")'
    )
    confined = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *AS_USER, *NO_CAPABILITIES]
    message = subprocess.run(
        [*confined, "python", "-c", probe], env=environment, capture_output=True, text=True
    )
    assert message.stdout.strip() == f"{USER} Read-only file system", message.stderr
    pipe = {"stderr": subprocess.PIPE, "text": True}
    with running([*confined, "latentd", "serve"], env=environment, **pipe) as server:
        assert server.stderr is not None
        log = []
        for line in server.stderr:
            log.append(line)
            found = re.search(r"Listening on ([\d.:]+), metrics", line)
            if found:
                break
        else:
            pytest.fail("".join(log))
        client = ["latentd", "client", "sample", "--count", "4", "--seed", "7"]
        answer = subprocess.run(
            [*AS_USER, *client, "--server", found[1]],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "toy" in answer.stdout
        server.terminate()
        rest = server.communicate()[1]
    assert server.returncode == 0, rest
    assert "Traceback" not in "".join(log) + rest
