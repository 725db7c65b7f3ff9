"""Values of the chart, each with the kustomization that means the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.conftest import with_components
from tests.support.helm import ARCHIVE, SHA256, Values

IMAGE = f"registry.example.com/latentd-bundles@sha256:{'0' * 64}"


@dataclass(frozen=True)
class Case:
    """Values of the chart, and the kustomization that means the same."""

    values: Values
    overlay: str = "cpu"
    components: tuple[str, ...] = ()
    literals: tuple[str, ...] = ()
    """Settings."""
    more: Values = field(default_factory=dict)
    """Further keys of the kustomization."""
    release: str = "latentd"

    @property
    def kustomization(self) -> Values:
        bundles = [f"BUNDLES_URL={ARCHIVE['url']}", f"BUNDLES_SHA256={SHA256}"]
        literals = {"latentd-bundles": bundles, "latentd-settings": list(self.literals)}
        generated = [
            {"name": name, "namespace": "latentd", "behavior": "merge", "literals": lines}
            for name, lines in literals.items()
        ]
        return with_components(
            self.overlay, self.components, configMapGenerator=generated, **self.more
        )


def patched(*operations: Values, kind: str = "Deployment") -> Values:
    return {"target": {"kind": kind}, "patch": json.dumps(operations)}


def added(path: str, value: Any) -> Values:
    return {"op": "add", "path": path, "value": value}


POD = "/spec/template/spec"
SERVER = f"{POD}/containers/0"
ZONES = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
AFFINITY = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": ZONES}}
}
COLLECTOR = {
    "to": [{"namespaceSelector": {"matchLabels": {"name": "tracing"}}}],
    "ports": [{"protocol": "TCP", "port": 4317}],
}
EVERYTHING = Case(
    {
        "image": {"repository": "mirror.example.com/latentd", "digest": f"sha256:{SHA256}"},
        "imagePullSecrets": [{"name": "mirror"}],
        "bundles": {"archive": ARCHIVE},
        "settings": {"LATENTD_QUEUE_ROWS": 10_000_000, "LATENTD_INTRA_OP_THREADS": 0},
        "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "digits"}],
        "extraVolumes": [{"name": "authority", "configMap": {"name": "authority"}}],
        "extraVolumeMounts": [{"name": "authority", "mountPath": "/etc/ssl/certs"}],
        "http": {"enabled": True},
        "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "4Gi"}},
        "terminationGracePeriodSeconds": 60,
        "startupProbe": {"failureThreshold": 120},
        "runtimeClassName": "kata",
        "priorityClassName": "serving",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "serving", "operator": "Exists"}],
        "affinity": AFFINITY,
        "commonLabels": {"team": "vision"},
        "commonAnnotations": {"owner": "vision@example.com"},
        "podLabels": {"tier": "front"},
        "podAnnotations": {"example.com/mesh": "off"},
        "service": {"annotations": {"example.com/name": "digits"}},
        "serviceAccount": {"annotations": {"example.com/role": "reader"}},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "autoscaling": {"enabled": True},
        "monitoring": {"enabled": True},
        "networkPolicy": {"enabled": True, "extraEgress": [COLLECTOR]},
        "tls": {"enabled": True},
        "tokens": {"enabled": True},
    },
    components=("autoscaling", "http", "monitoring", "network-policy", "tls"),
    literals=(
        "LATENTD_QUEUE_ROWS=10000000",
        "LATENTD_INTRA_OP_THREADS=0",
    ),
    more={
        "images": [
            {
                "name": "registry.example.com/latentd",
                "newName": "mirror.example.com/latentd",
                "digest": f"sha256:{SHA256}",
            }
        ],
        "labels": [{"pairs": {"team": "vision"}, "includeTemplates": True}],
        "commonAnnotations": {"owner": "vision@example.com"},
        "patches": [
            patched(
                added(f"{POD}/imagePullSecrets", [{"name": "mirror"}]),
                added(f"{POD}/runtimeClassName", "kata"),
                added(f"{POD}/priorityClassName", "serving"),
                added(f"{POD}/nodeSelector", {"disk": "ssd"}),
                added(f"{POD}/tolerations", [{"key": "serving", "operator": "Exists"}]),
                added(f"{POD}/affinity", AFFINITY),
                added(f"{POD}/terminationGracePeriodSeconds", 60),
                added(
                    f"{POD}/volumes/-", {"name": "authority", "configMap": {"name": "authority"}}
                ),
                added(f"{SERVER}/env", [{"name": "OTEL_SERVICE_NAME", "value": "digits"}]),
                added(
                    f"{SERVER}/volumeMounts/-", {"name": "authority", "mountPath": "/etc/ssl/certs"}
                ),
                added(f"{SERVER}/startupProbe/failureThreshold", 120),
                added(f"{SERVER}/resources/requests/cpu", "4"),
                added(f"{SERVER}/resources/limits/memory", "4Gi"),
                added("/spec/template/metadata/labels/tier", "front"),
                added("/spec/template/metadata/annotations", {"example.com/mesh": "off"}),
            ),
            patched(
                added("/metadata/annotations", {"example.com/name": "digits"}),
                kind="Service",
            ),
            patched(
                added("/metadata/annotations", {"example.com/role": "reader"}),
                kind="ServiceAccount",
            ),
            patched(added("/spec/maxUnavailable", "25%"), kind="PodDisruptionBudget"),
            patched(
                added("/spec/egress/-", COLLECTOR),
                kind="NetworkPolicy",
            ),
        ],
    },
)

CASES = {
    "cpu": Case({}),
    "gpu": Case(
        {
            "accelerator": "gpu",
            "presets": {"gpu": {"resources": {"limits": {"nvidia.com/gpu": None}}}},
            "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}},
            "runtimeClassName": "nvidia",
        },
        overlay="gpu",
        release="gpu-latentd",
        more={
            "patches": [
                patched(
                    {"op": "remove", "path": f"{SERVER}/resources/limits/nvidia.com~1gpu"},
                    added(f"{SERVER}/resources/limits/nvidia.com~1mig-1g.10gb", 1),
                    added(f"{POD}/runtimeClassName", "nvidia"),
                )
            ]
        },
    ),
    "gpu, as it is": Case({"accelerator": "gpu"}, overlay="gpu", release="gpu-latentd"),
    "bundles in an image": Case(
        {"bundles": {"source": "image", "image": {"reference": IMAGE}}},
        components=("bundles-image",),
    ),
    "bundles in a volume": Case({"bundles": {"source": "volume"}}, components=("bundles-volume",)),
    "autoscaling": Case({"autoscaling": {"enabled": True}}, components=("autoscaling",)),
    "autoscaling by KEDA": Case(
        {"autoscaling": {"enabled": True, "kind": "ScaledObject"}},
        components=("autoscaling-keda",),
    ),
    "monitoring": Case({"monitoring": {"enabled": True}}, components=("monitoring",)),
    "network policy": Case({"networkPolicy": {"enabled": True}}, components=("network-policy",)),
    "tls and tokens": Case(
        {"tls": {"enabled": True}, "tokens": {"enabled": True}}, components=("tls",)
    ),
    "certificate": Case(
        {
            "tls": {
                "enabled": True,
                "certificate": {"enabled": True, "issuerRef": {"name": "private-ca"}},
            },
            "tokens": {"enabled": True},
        },
        components=("tls", "certificate"),
    ),
    "gateway": Case(
        {
            "grpcRoute": {
                "enabled": True,
                "parentRefs": [{"name": "gateway", "namespace": "gateway"}],
                "hostnames": ["latentd.example.com"],
            }
        },
        components=("gateway",),
    ),
    "everything": EVERYTHING,
    "second release": Case(
        {
            "autoscaling": {"enabled": True, "kind": "ScaledObject"},
            "monitoring": {"enabled": True},
            "networkPolicy": {"enabled": True},
        },
        components=("autoscaling-keda", "monitoring", "network-policy"),
        more={"namePrefix": "blue-"},
        release="blue-latentd",
    ),
}
