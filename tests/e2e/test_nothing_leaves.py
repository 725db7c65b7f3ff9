"""Nothing leaves the machine: no library reports to its maker, from any entry point.

ONNX Runtime sends nothing when it detects CI, so these processes have few variables.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 13  # the first DNS query came 9 s after the import

STRACE = shutil.which("strace")
CALLS = "connect,sendto,sendmsg,sendmmsg"
LOOPBACK = re.compile(r'inet_addr\("127\.|inet_pton\(AF_INET6, "(::1|::ffff:127\.[\d.]+)"')
NAME_SERVER = "htons(53)"  # can be on the loopback, and forwards queries


def environment(home: Path) -> dict[str, str]:
    """Variables as in a user's shell, with an empty home and an empty temporary folder."""
    (home / "tmp").mkdir(parents=True)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "OMP_NUM_THREADS": "1",
    }


def traces(home: Path) -> list[Path]:
    """The files of ONNX Runtime's telemetry: a device id, a database, a session."""
    return [path for path in home.rglob("*") if re.search(r"onnxruntime|\.ses", path.name)]


@pytest.mark.parametrize(
    "module",
    [
        "latentd.process.worker",
        "latentd.process.capacity",
        "latentd.jobs.worker",
        "latentd.training.parity",
    ],
)
def test_onnx_runtime_telemetry_writes_nothing(tmp_path, module):
    code = f"import sys, {module}; assert 'onnxruntime' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True)
    assert not traces(tmp_path)


@pytest.mark.parametrize("package", ["latentd.client", "latentd.training"])
def test_settings_of_the_user_are_kept(tmp_path, package):
    names = {"ORT_DISABLE_TELEMETRY": "0", "RAY_USAGE_STATS_ENABLED": "1"}
    code = f"import os, {package}; print([os.environ.get(name) for name in {list(names)}])"
    command, given = [sys.executable, "-c", code], environment(tmp_path)
    said = [subprocess.check_output(command, env=e, text=True) for e in (given, given | names)]
    assert said == ["['1', '0']\n", "['0', '1']\n"]


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not here")
def test_no_entry_point_opens_outside_connections(start_process, toy_bundles, tmp_path):
    from diffusers import AutoencoderTiny  # takes seconds

    np.save(tmp_path / "rows.npy", np.zeros((4, 4, 4), np.uint8))
    bundles, rows, out = str(toy_bundles), str(tmp_path / "rows.npy"), str(tmp_path / "out")
    serve = ["serve", "--bundles", bundles, "--port", "0", "--metrics-port", "0"]
    job = ["batch", "--input", rows, "--bundle", f"{bundles}/toy", "--output", out]
    AutoencoderTiny().save_pretrained(tmp_path / "vae")
    load = f"vae.load(folders.DiffusersFolder.find(pathlib.Path({str(tmp_path / 'vae')!r})))"
    folders = "from latentd.training.adopt.folders import diffusers as folders"
    vaes = "from latentd.training.adopt.modules import diffusers_vae as vae"
    ends = f"threading.Timer({SECONDS}, os.kill, (os.getpid(), signal.SIGTERM)).start()"
    lives = f"time.sleep({SECONDS})"
    entries = {
        "server": f"{ends}; sys.exit(main({[*serve, '--workers', '1']}))",
        "workers": f"{ends}; sys.exit(main({[*serve, '--workers', '2']}))",
        "job": f"assert main({[*job, '--processes', '1']}) == 0; {lives}",
        "training": f"import latentd.training.export, latentd.training.figures; {lives}",
        "adoption": f"import pathlib; {folders}; {vaes}; {load}; {lives}",
    }
    running = {}
    for name, code in entries.items():
        code = (
            "import os, signal, sys, threading, time; from latentd.__main__ import main\n"
            f"if __name__ == '__main__': {code}\n"
        )
        script = tmp_path / f"of_{name}.py"  # a file, because workers import it
        script.write_text(code)
        traced = [STRACE, "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(tmp_path / name)]
        running[name] = start_process(
            [*traced, sys.executable, str(script)],
            env=environment(tmp_path / f"{name}-home"),
        )
    for name, process in running.items():
        assert process.wait(300) == 0, name
        lines = (tmp_path / name).read_text().splitlines()
        outside = [line for line in lines if "AF_INET" in line and not LOOPBACK.search(line)]
        outside += [line for line in lines if NAME_SERVER in line]
        assert not outside, name
        assert not traces(tmp_path / f"{name}-home"), name
