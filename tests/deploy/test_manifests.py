"""The server's manifests match its settings and code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentd import settings
from latentd.process.metrics_server import HEALTH_PATHS
from latentd.process.server import HEALTH_NAMES
from tests.support.manifests import chosen, container, environment, one, pod_of

ROOT = Path(__file__).resolve().parents[2]


def test_every_variable_is_a_valid_setting(build, overlay):
    values = environment(build(overlay))
    assert settings.unknown_env_vars(values) == []
    assert chosen(build(overlay)) != settings.Settings()


def test_ports_match_the_server(build, overlay):
    documents = build(overlay, ["http", "network-policy", "monitoring"])
    server = chosen(documents)
    ports = {"grpc": server.port, "http": server.http_port, "metrics": server.metrics_port}
    assert {p["name"]: p["containerPort"] for p in container(documents)["ports"]} == ports
    service = one(documents, "Service")["spec"]
    assert service["clusterIP"] == "None"
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    grpc = next(p for p in service["ports"] if p["name"] == "grpc")
    assert grpc["appProtocol"] == "kubernetes.io/h2c"
    for name, probe in container(documents).items():
        if name.endswith("Probe"):
            assert ports[probe["httpGet"]["port"]] == server.metrics_port, name
    policy = one(documents, "NetworkPolicy")["spec"]
    allowed = [p["port"] for rule in policy["ingress"] for p in rule["ports"]]
    assert allowed == [server.port, server.http_port, server.metrics_port]
    endpoint = one(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert endpoint["port"] in {p["name"] for p in service["ports"]}
    assert server.host == "0.0.0.0"


def test_kind_of_machine_is_a_label_of_its_metrics(build, overlay):
    documents = build(overlay, ["monitoring"])
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["accelerator"] == overlay
    assert one(documents, "ServiceMonitor")["spec"]["podTargetLabels"] == ["accelerator"]


def test_probes_use_existing_health_services(build, overlay):
    probes = {n: p for n, p in container(build(overlay)).items() if n.endswith("Probe")}
    asked = {name: HEALTH_PATHS[probe["httpGet"]["path"]] for name, probe in probes.items()}
    assert asked == {
        "startupProbe": "startup",
        "readinessProbe": "readiness",
        "livenessProbe": "liveness",
    }
    # readiness turns with the server's state; the others must not, or a drain would be shot.
    assert "readiness" in HEALTH_NAMES
    assert not {"liveness", "startup"} & set(HEALTH_NAMES)


def test_grace_period_covers_a_stop(build, overlay):
    documents = build(overlay)
    server, pod = chosen(documents), pod_of(documents)
    before = container(documents)["lifecycle"]["preStop"]["sleep"]["seconds"]
    slack = 5 if server.workers > 1 else 0  # the supervisor's, for its workers
    needed = before + server.lame_duck_seconds + server.drain_seconds + slack + 5
    assert pod["terminationGracePeriodSeconds"] >= needed


def test_workers_match_the_cpu_request(build, overlay):
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
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    namespace = yaml.safe_load((ROOT / "deploy/k8s/namespace.yaml").read_text())
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_rollouts_need_no_spare_gpu(build, overlay):
    rolling = one(build(overlay), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    spare_gpu = {"maxUnavailable": 1, "maxSurge": 0}
    spare_cpu = {"maxUnavailable": 0, "maxSurge": 1}
    assert rolling == (spare_gpu if overlay == "gpu" else spare_cpu)
    budget = one(build(overlay), "PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("source", [(), ("bundles-image",), ("bundles-volume",)], ids="+".join)
def test_bundle_mount_matches_the_setting(build, overlay, source):
    documents = build(overlay, source)
    pod = pod_of(documents)
    models = next(v for v in pod["volumes"] if v["name"] == "models")
    kind = {(): "emptyDir", ("bundles-image",): "image"}.get(source, "persistentVolumeClaim")
    assert set(models) == {"name", kind}
    mount = next(m for m in container(documents)["volumeMounts"] if m["name"] == "models")
    assert mount == {"name": "models", "mountPath": chosen(documents).bundles, "readOnly": True}
    assert bool(pod.get("initContainers")) == (source == ())


def test_tls_files_are_mounted(build, overlay):
    documents = build(overlay, ["tls"])
    server = chosen(documents)
    mounts = {m["mountPath"]: m["name"] for m in container(documents)["volumeMounts"]}
    volumes = {v["name"]: v for v in pod_of(documents)["volumes"]}
    files = [server.tls_cert, server.tls_key, server.tls_client_ca, server.tokens]
    for file in map(Path, files):
        assert "secret" in volumes[mounts[str(file.parent)]], file


@pytest.mark.parametrize("component", ["autoscaling", "autoscaling-keda"])
def test_manifests_with_autoscaler_set_no_replicas(build, overlay, component):
    documents = build(overlay, [component])
    assert "replicas" not in one(documents, "Deployment")["spec"]
    kind = "ScaledObject" if component.endswith("keda") else "HorizontalPodAutoscaler"
    target = one(documents, kind)["spec"]["scaleTargetRef"]
    assert target["name"] == one(documents, "Deployment")["metadata"]["name"]


def test_autoscalers_have_the_same_targets(build):
    values = one(build("cpu", ["autoscaling"]), "HorizontalPodAutoscaler")["spec"]
    keda = one(build("cpu", ["autoscaling-keda"]), "ScaledObject")["spec"]
    queue, cpu, busy = values["metrics"]
    targets = {trigger.get("name", "cpu"): trigger["metadata"] for trigger in keda["triggers"]}
    assert targets["latentd_queue_rows"]["threshold"] == queue["pods"]["target"]["averageValue"]
    used = cpu["containerResource"]["target"]["averageUtilization"]
    assert targets["cpu"]["value"] == str(used)
    busy_share = float(targets["latentd_engine_busy_ratio"]["threshold"])
    assert busy["pods"]["target"]["averageValue"] == f"{busy_share * 1000:.0f}m"
    behavior = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"] == values["behavior"]["scaleDown"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (
        values["minReplicas"],
        values["maxReplicas"],
    )
