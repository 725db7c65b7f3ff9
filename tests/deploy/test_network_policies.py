"""What the network policies allow, judged by the rules of Kubernetes."""

from __future__ import annotations

import ipaddress

import pytest

APP = {"app.kubernetes.io/name": "latentd", "app.kubernetes.io/instance": "latentd"}
SERVER, BATCH, TRAINING = (
    {"pod": APP | {"app.kubernetes.io/component": name}, "namespace": "latentd"}
    for name in ("server", "batch", "training")
)
GREEN_TRAINING = {
    "pod": TRAINING["pod"] | {"app.kubernetes.io/instance": "green-latentd"},
    "namespace": "latentd",
}
CALLER = {"pod": {"latentd-client": "true"}, "namespace": "latentd"}
STRANGER = {"pod": {"app": "web"}, "namespace": "latentd"}
DISTANT = {"pod": {"latentd-client": "true"}, "namespace": "web"}
PROMETHEUS = {"pod": {"app": "prometheus"}, "namespace": "monitoring"}
CORE_DNS = {"pod": {"k8s-app": "kube-dns"}, "namespace": "kube-system"}
NODE_DNS_POD = {"pod": {"k8s-app": "node-local-dns"}, "namespace": "kube-system"}
OPENSHIFT_DNS = {"pod": {"any": "label"}, "namespace": "openshift-dns"}
KUBE_PROXY = {"pod": {"k8s-app": "kube-proxy"}, "namespace": "kube-system"}
NODE_DNS, WEB, WEB6 = ({"ip": ip} for ip in ("169.254.20.10", "203.0.113.7", "2001:db8::7"))


def selects(selector, labels):
    in_values = (
        labels.get(expression["key"]) in expression["values"] and expression["operator"] == "In"
        for expression in selector.get("matchExpressions", [])
    )
    return selector.get("matchLabels", {}).items() <= labels.items() and all(in_values)


def is_peer(peer, other, policy):
    if "ipBlock" in peer:
        return "ip" in other and ipaddress.ip_address(other["ip"]) in ipaddress.ip_network(
            peer["ipBlock"]["cidr"]
        )
    if "pod" not in other:
        return False
    here = policy["metadata"]["namespace"] == other["namespace"]
    labels = {"kubernetes.io/metadata.name": other["namespace"]}
    named = selects(peer["namespaceSelector"], labels) if "namespaceSelector" in peer else here
    return named and selects(peer.get("podSelector", {}), other["pod"])


def allows(documents, pod, direction, other, protocol, port):
    """Whether a pod may be connected to ("ingress") or connect to ("egress") another one."""
    policies = [
        d
        for d in documents
        if d["kind"] == "NetworkPolicy" and selects(d["spec"]["podSelector"], pod["pod"])
    ]
    assert policies
    assert all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in policies)
    side = {"ingress": "from", "egress": "to"}[direction]
    given = {"protocol": protocol, "port": port}
    return any(
        any(is_peer(peer, other, policy) for peer in rule[side])
        and ("ports" not in rule or given in rule["ports"])
        for policy in policies
        for rule in policy["spec"].get(direction, [])
    )


@pytest.fixture
def documents(build):
    return build("cpu", ["network-policy", "batch-job", "training-job"])


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize(
    ("dns", "port"), [(CORE_DNS, 53), (NODE_DNS, 53), (NODE_DNS_POD, 53), (OPENSHIFT_DNS, 5353)]
)
def test_names_can_be_asked_for(documents, dns, port, protocol):
    for pod in (SERVER, TRAINING):
        assert allows(documents, pod, "egress", dns, protocol, port)
        assert not allows(documents, pod, "egress", KUBE_PROXY, protocol, port)
    assert not allows(documents, BATCH, "egress", dns, protocol, port)


def test_servers_answer_callers_and_prometheus_only(documents):
    def answers(other, port):
        return allows(documents, SERVER, "ingress", other, "TCP", port)

    assert answers(CALLER, 50051)
    assert answers(PROMETHEUS, 9464)
    assert not any(answers(other, 50051) for other in (STRANGER, DISTANT, PROMETHEUS, WEB))
    assert not any(answers(other, 9464) for other in (STRANGER, CALLER, WEB))


def test_servers_fetch_bundles_over_https_only(documents):
    for other in (WEB, WEB6):
        assert allows(documents, SERVER, "egress", other, "TCP", 443)
        assert not allows(documents, SERVER, "egress", other, "TCP", 80)


def test_training_pods_reach_each_other_only(documents):
    for direction in ("ingress", "egress"):
        for port in (29500, 43210):  # the rendezvous, and one that gloo or NCCL has chosen
            assert allows(documents, TRAINING, direction, TRAINING, "TCP", port)
            for other in (SERVER, BATCH, GREEN_TRAINING, STRANGER, WEB, WEB6):
                assert not allows(documents, TRAINING, direction, other, "TCP", port)
    assert not allows(documents, TRAINING, "egress", WEB, "TCP", 443)


def test_batch_pods_reach_nothing(documents):
    for other in (SERVER, BATCH, TRAINING, WEB, CORE_DNS):
        assert not allows(documents, BATCH, "egress", other, "TCP", 443)
        assert not allows(documents, BATCH, "ingress", other, "TCP", 443)
