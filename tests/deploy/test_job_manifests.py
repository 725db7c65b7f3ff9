"""The job manifests match their commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from latentd.jobs import exit_codes
from tests.support.manifests import one

ROOT = Path(__file__).resolve().parents[2]


def test_job_failure_policy_matches_exit_codes(build):
    documents = build("cpu", ["batch-job", "training-job"])
    for name in ("latentd-batch", "latentd-training"):
        job = one(documents, "Job", name)["spec"]
        rules = job["podFailurePolicy"]["rules"]
        names = {c["name"] for c in job["template"]["spec"]["containers"]}
        by_action = {rule["action"]: rule for rule in rules}
        condition = by_action["Ignore"]["onPodConditions"][0]
        assert condition == {"type": "DisruptionTarget", "status": "True"}
        assert by_action["FailJob"]["onExitCodes"]["values"] == [exit_codes.CONFIG]
        assert all(r["onExitCodes"]["containerName"] in names for r in rules if "onExitCodes" in r)
        assert job["completionMode"] == "Indexed"
        assert job["ttlSecondsAfterFinished"] > 0
    batch = one(documents, "Job", "latentd-batch")["spec"]
    assert batch["backoffLimitPerIndex"] >= 1
    action = {r["action"]: r for r in batch["podFailurePolicy"]["rules"]}["FailIndex"]
    assert action["onExitCodes"]["values"] == [exit_codes.DATA, exit_codes.QUARANTINED]
    training = one(documents, "Job", "latentd-training")["spec"]
    assert training["completions"] == training["parallelism"]
    script = training["template"]["spec"]["containers"][0]["args"][0]
    assert f"--nnodes={training['completions']} " in script
    service = one(documents, "Service", "latentd-training")
    port = service["spec"]["ports"][0]["port"]
    assert f"--master-port={port} " in script


def flags(*command):
    completed = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    return (
        set(re.findall(r"--[a-z][a-z-]+", completed.stdout)) if completed.returncode == 0 else set()
    )


def test_job_flags_exist(build):
    documents = build("cpu", ["batch-job", "training-job"])
    training = one(documents, "Job", "latentd-training")["spec"]["template"]["spec"]
    script = training["containers"][0]["args"][0]
    used = set(re.findall(r"--(?:out|data|resume)\b", script))
    assert used == {"--out", "--data", "--resume"} <= flags("latentd", "train")
    batch = one(documents, "Job", "latentd-batch")["spec"]["template"]["spec"]
    command, *given = batch["containers"][0]["args"]
    flags_given = dict(argument.split("=") for argument in given)
    assert flags_given.keys() <= flags("latentd", command)
    assert (
        int(flags_given["--shard-count"])
        == one(documents, "Job", "latentd-batch")["spec"]["completions"]
    )
    assert flags_given["--processes"] == batch["containers"][0]["resources"]["requests"]["cpu"]
