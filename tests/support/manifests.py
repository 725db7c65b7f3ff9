"""What stands in built manifests: a document, the server's pod, what its container is told."""

from __future__ import annotations

from latentd import settings


def one(documents, kind, name="latentd"):
    """The one document of this kind whose name begins so, after any prefix."""
    kinds = [d for d in documents if d["kind"] == kind]
    found = [d for d in kinds if f"-{name}" in f"-{d['metadata']['name']}"]
    assert len(found) == 1, f"{len(found)} {kind} named {name}"
    return found[0]


def pod_of(documents):
    return one(documents, "Deployment")["spec"]["template"]["spec"]


def container(documents):
    return pod_of(documents)["containers"][0]


def environment(documents):
    """What the server's container is told: by the ConfigMap that it names, or itself."""
    told = {}
    for source in container(documents).get("envFrom", []):
        told |= one(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    return told | {item["name"]: item["value"] for item in container(documents).get("env", [])}


def chosen(documents):
    """The settings that the server makes of its environment and arguments."""
    assert container(documents)["args"] == ["serve"]
    return settings.load_settings({}, environment(documents))
