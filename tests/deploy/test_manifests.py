"""Every combination builds and is valid, and manifests, settings and code say the same."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving import settings
from serving.console.parser import add_client_parser
from serving.jobs import exits
from serving.metrics import Metrics, restarts
from serving.process.server import HEALTH_NAMES
from serving.transport.health import Health

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "deploy/k8s/components"
NEWEST = ("1.36", "1.37")

BUNDLES = [(), ("bundles-image",), ("bundles-volume",)]
AUTOSCALING = [(), ("autoscaling",), ("autoscaling-keda",)]
OTHERS = [
    [(), (path.name,)]
    for path in sorted(COMPONENTS.iterdir())
    if not path.name.startswith(("bundles-", "autoscaling"))
]
COMBINATIONS = [sum(parts, ()) for parts in itertools.product(BUNDLES, AUTOSCALING, *OTHERS)]
FEW = [one for one in COMBINATIONS if len(one) < 2] + [max(COMBINATIONS, key=len)]

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""What no Kubernetes schema knows."""


def one(documents, kind, name="latentd"):
    """The one document of this kind whose name begins so."""
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].startswith(name)]
    assert len(found) == 1, f"{len(found)} {kind} named {name}"
    return found[0]


def pod_of(documents):
    return one(documents, "Deployment")["spec"]["template"]["spec"]


def container(documents):
    return pod_of(documents)["containers"][0]


def environment(documents):
    """What the server's container is told: the ConfigMap it names."""
    reference = container(documents)["envFrom"][0]["configMapRef"]["name"]
    return one(documents, "ConfigMap", reference)["data"]


def chosen(documents):
    """The settings that the server makes of its environment and arguments."""
    assert container(documents)["args"] == ["serve"]
    return settings.read({}, environment(documents))


_valid: set[str] = set()


def validate(documents):
    validator = pytest.importorskip(
        "kubernetes_validate",
        reason="kubernetes-validate is not here: make test-operate installs it",
    )
    new = {json.dumps(d, sort_keys=True): d for d in documents if d["kind"] not in CUSTOM}
    new = {text: document for text, document in new.items() if text not in _valid}
    for document, version in itertools.product(new.values(), NEWEST):
        try:
            validator.validate(document, version, strict=True)
        except validator.ValidationError as error:
            pytest.fail(f"{document['kind']} {document['metadata']['name']}, {version}: {error}")
    _valid.update(new)


@pytest.mark.parametrize("components", FEW, ids="+".join)
def test_each_component_builds_and_is_valid(build, overlay, components):
    validate(build(overlay, components))


@pytest.mark.slow
def test_every_combination_builds_and_is_valid(build, overlay):
    validate([d for components in COMBINATIONS for d in build(overlay, components)])


def test_every_folder_says_what_it_is_for():
    for folder in (*COMPONENTS.iterdir(), *(ROOT / "deploy/k8s/overlays").iterdir()):
        assert len((folder / "README.md").read_text().splitlines()) >= 3, folder
        assert folder.name in (ROOT / "deploy/README.md").read_text(), folder


# What the manifests say and what the code does.


def test_every_variable_is_a_setting_that_can_be_read(build, overlay):
    told = environment(build(overlay))
    assert settings.unknown_variables(told) == []
    assert chosen(build(overlay)) != settings.Settings()


def test_the_ports_are_the_servers(build, overlay):
    documents = build(overlay, ["network-policy", "monitoring"])
    server = chosen(documents)
    ports = {"grpc": server.port, "metrics": server.metrics_port}
    assert {p["name"]: p["containerPort"] for p in container(documents)["ports"]} == ports
    service = one(documents, "Service")["spec"]
    assert service["clusterIP"] == "None"
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    grpc = next(p for p in service["ports"] if p["name"] == "grpc")
    assert grpc["appProtocol"] == "kubernetes.io/h2c"
    for name, probe in container(documents).items():
        if name.endswith("Probe"):
            assert probe["grpc"]["port"] == server.port, name
    policy = one(documents, "NetworkPolicy", "server")["spec"]
    allowed = [p["port"] for rule in policy["ingress"] for p in rule["ports"]]
    assert allowed == [server.port, server.metrics_port]
    endpoint = one(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert endpoint["port"] in {p["name"] for p in service["ports"]}
    assert server.host == "0.0.0.0"


def test_the_selectors_find_the_pods(build, overlay):
    documents = build(overlay, ["network-policy", "monitoring"])
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    spread = pod_of(documents)["topologySpreadConstraints"]
    selectors = [
        one(documents, "Deployment")["spec"]["selector"]["matchLabels"],
        one(documents, "Service")["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy", "server")["spec"]["podSelector"]["matchLabels"],
        *(s["labelSelector"]["matchLabels"] for s in spread),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitor = one(documents, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    assert wanted <= one(documents, "Service")["metadata"]["labels"].items()
    assert labels["accelerator"] == overlay
    assert monitor["podTargetLabels"] == ["accelerator"]


def test_probes_ask_for_health_that_the_server_tells(build, overlay):
    probes = {n: p for n, p in container(build(overlay)).items() if n.endswith("Probe")}
    asked = {name: probe["grpc"]["service"] for name, probe in probes.items()}
    assert asked == {
        "startupProbe": "readiness",
        "readinessProbe": "readiness",
        "livenessProbe": "liveness",
    }
    # readiness turns with the server's state; liveness must not, or a drain would be shot.
    assert "readiness" in HEALTH_NAMES
    assert "liveness" not in HEALTH_NAMES
    assert Health().handlers().keys() == {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }


def test_the_grace_period_holds_all_of_a_stop(build, overlay):
    documents = build(overlay)
    server, pod = chosen(documents), pod_of(documents)
    before = container(documents)["lifecycle"]["preStop"]["sleep"]["seconds"]
    slack = 5 if server.workers > 1 else 0  # the supervisor's, for its workers
    needed = before + server.lame_duck_seconds + server.drain_seconds + slack + 5
    assert pod["terminationGracePeriodSeconds"] >= needed


def test_workers_are_as_many_as_the_cpus_asked_for(build, overlay):
    documents = build(overlay)
    server, resources = chosen(documents), container(documents)["resources"]
    assert "cpu" not in resources["limits"], "throttling shows as latency"
    assert "memory" in resources["limits"]
    if overlay == "cpu":
        # 0 would start one for each CPU of the node: without a limit the pod sees them all.
        assert server.workers == int(resources["requests"]["cpu"])
        assert server.provider == "cpu"
    else:
        assert resources["limits"]["nvidia.com/gpu"] == 1
        assert (server.workers, server.provider) == (1, "cuda")


def test_pods_are_confined(build, overlay):
    documents = build(overlay, ["batch-job", "training-job"])
    workloads = [d for d in documents if d["kind"] in ("Deployment", "Job")]
    assert len(workloads) == 3
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    user = int(re.findall(r"^USER (\d+):", dockerfile, re.M)[0])
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "LATENTD_PORT would be the Service's"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*pod.get("initContainers", []), *pod["containers"]):
            context = each["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in each["resources"]["limits"]
            mounts = {m["mountPath"]: m["name"] for m in each["volumeMounts"]}
            volume = next(v for v in pod["volumes"] if v["name"] == mounts["/tmp"])
            assert "sizeLimit" in volume["emptyDir"]
    labels = one(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_rollouts_never_need_what_may_not_be_there(build, overlay):
    rolling = one(build(overlay), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    spare_gpu = {"maxUnavailable": 1, "maxSurge": 0}
    spare_cpu = {"maxUnavailable": 0, "maxSurge": 1}
    assert rolling == (spare_gpu if overlay == "gpu" else spare_cpu)
    budget = one(build(overlay), "PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("source", BUNDLES, ids="+".join)
def test_bundles_lie_where_the_server_looks(build, overlay, source):
    documents = build(overlay, source)
    pod = pod_of(documents)
    models = next(v for v in pod["volumes"] if v["name"] == "models")
    kind = {(): "emptyDir", ("bundles-image",): "image"}.get(source, "persistentVolumeClaim")
    assert set(models) == {"name", kind}
    mount = next(m for m in container(documents)["volumeMounts"] if m["name"] == "models")
    assert mount == {"name": "models", "mountPath": chosen(documents).bundles, "readOnly": True}
    assert bool(pod.get("initContainers")) == (source == ())


def test_with_tls_every_file_that_is_named_is_mounted_and_probes_use_it(build, overlay):
    documents = build(overlay, ["tls"])
    server = chosen(documents)
    mounts = {m["mountPath"]: m["name"] for m in container(documents)["volumeMounts"]}
    volumes = {v["name"]: v for v in pod_of(documents)["volumes"]}
    files = [server.tls_cert, server.tls_key, server.tls_client_ca, server.tokens]
    for file in map(Path, files):
        assert "secret" in volumes[mounts[str(file.parent)]], file
    parser = argparse.ArgumentParser()
    add_client_parser(parser.add_subparsers())
    services = []
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *command = container(documents)[name]["exec"]["command"]
        args = parser.parse_args(command)
        assert (program, args.call) == ("latentd", "health")
        assert args.server == f"localhost:{server.port}"
        given = [args.tls_cert, args.tls_key, args.tls_ca]
        assert given == [server.tls_cert, server.tls_key, server.tls_client_ca]
        services.append(args.service)
    assert services == ["readiness", "readiness", "liveness"]


@pytest.mark.parametrize("component", ["autoscaling", "autoscaling-keda"])
def test_an_autoscaler_has_the_number_of_replicas_to_itself(build, overlay, component):
    documents = build(overlay, [component])
    assert "replicas" not in one(documents, "Deployment")["spec"]
    kind = "ScaledObject" if component.endswith("keda") else "HorizontalPodAutoscaler"
    assert one(documents, kind)["spec"]["scaleTargetRef"]["name"] == "latentd"


def test_a_job_ends_as_its_exit_status_says(build):
    documents = build("cpu", ["batch-job", "training-job"])
    for name in ("latentd-reconstruct", "latentd-training"):
        job = one(documents, "Job", name)["spec"]
        rules = job["podFailurePolicy"]["rules"]
        names = {c["name"] for c in job["template"]["spec"]["containers"]}
        by_action = {rule["action"]: rule for rule in rules}
        condition = by_action["Ignore"]["onPodConditions"][0]
        assert condition == {"type": "DisruptionTarget", "status": "True"}
        assert by_action["FailJob"]["onExitCodes"]["values"] == [exits.CONFIG]
        assert all(r["onExitCodes"]["containerName"] in names for r in rules if "onExitCodes" in r)
        assert job["completionMode"] == "Indexed"
        assert job["ttlSecondsAfterFinished"] > 0
    batch = one(documents, "Job", "latentd-reconstruct")["spec"]
    assert batch["backoffLimitPerIndex"] >= 1
    action = {r["action"]: r for r in batch["podFailurePolicy"]["rules"]}["FailIndex"]
    assert action["onExitCodes"]["values"] == [exits.DATA]
    training = one(documents, "Job", "latentd-training")["spec"]
    assert training["completions"] == training["parallelism"]
    script = training["template"]["spec"]["containers"][0]["args"][0]
    assert f"--nnodes={training['completions']} " in script
    service = one(documents, "Service", "latentd-training")
    port = service["spec"]["ports"][0]["port"]
    assert f"--master-port={port} " in script
    assert (
        f"--master-addr=latentd-training-0.{training['template']['spec']['subdomain']} " in script
    )
    assert service["metadata"]["name"] == training["template"]["spec"]["subdomain"]


def flags(*command):
    said = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    return set(re.findall(r"--[a-z][a-z-]+", said.stdout)) if said.returncode == 0 else set()


def test_the_jobs_flags_are_the_commands(build):
    documents = build("cpu", ["batch-job", "training-job"])
    training = one(documents, "Job", "latentd-training")["spec"]["template"]["spec"]
    script = training["containers"][0]["args"][0]
    used = set(re.findall(r"--(?:out|data|resume)\b", script))
    assert used == {"--out", "--data", "--resume"} <= flags("training", "train")
    batch = one(documents, "Job", "latentd-reconstruct")["spec"]["template"]["spec"]
    command, *given = batch["containers"][0]["args"]
    told = dict(argument.split("=") for argument in given)
    assert told.keys() <= flags("serving", command)
    assert int(told["--shard-count"]) == one(documents, "Job", "latentd-rec")["spec"]["completions"]
    assert told["--processes"] == batch["containers"][0]["resources"]["requests"]["cpu"]


# What is asked of Prometheus, and what the server counts.


def counted():
    """The names of every metric as they stand on the page."""
    registry = CollectorRegistry()
    Metrics(registry)
    restarts(registry)
    names = set()
    for family in registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        names |= {family.name + ending for ending in endings.get(family.type, [""])}
    return names


def test_every_metric_that_is_asked_for_is_counted():
    sources = [
        COMPONENTS / "monitoring/rules.yaml",
        COMPONENTS / "monitoring/dashboard.json",
        COMPONENTS / "autoscaling/autoscaler.yaml",
        COMPONENTS / "autoscaling/adapter-rules.yaml",
        COMPONENTS / "autoscaling-keda/scaledobject.yaml",
        ROOT / "deploy/README.md",
    ]
    adapter = (COMPONENTS / "autoscaling/adapter-rules.yaml").read_text()
    adapted = set(re.findall(r"as: (latentd_[a-z_]+)", adapter))
    for path in sources:
        asked = set(re.findall(r"\blatentd_[a-z_]+[a-z]\b", path.read_text()))
        assert asked, path
        assert asked <= counted() | adapted, path


def test_every_record_that_is_asked_for_is_made(rules):
    made = {
        rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule
    }
    texts = [json.dumps(rules), (COMPONENTS / "monitoring/dashboard.json").read_text()]
    asked = {name for text in texts for name in re.findall(r"\blatentd:[a-z0-9_:]+\b", text)}
    assert asked == made


def test_every_alarm_leads_to_its_page(rules):
    readme = (ROOT / "deploy/README.md").read_text()
    headings = {h.lower() for h in re.findall(r"^#+ (\w+)$", readme, re.M)}
    alerts = [r for group in rules["groups"] for r in group["rules"] if "alert" in r]
    assert len(alerts) >= 7
    for alert in alerts:
        page = alert["annotations"]["runbook"]
        assert page == f"deploy/README.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in headings, alert["alert"]
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("warning", "critical")
