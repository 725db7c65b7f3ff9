"""The chart's values: what they set, which are refused, where they are described."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from latentd import settings
from tests.support.helm import (
    CHART,
    ROOT,
    SHA256,
    Values,
    run_helm,
    template,
    with_archive,
)
from tests.support.manifests import chosen, environment, pod_of

yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

README = (CHART / "README.md").read_text()


def test_server_accepts_every_setting_of_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    given = {}
    for field in dataclasses.fields(settings.Settings):
        name = f"LATENTD_{field.name.upper()}"
        if name in schema["definitions"]["settings"]["properties"]:
            given[name] = field.default
    assert len(given) > 30
    given |= {"LATENTD_QUEUE_ROWS": 10_000_000, "LATENTD_MAX_BATCH_LATENCY_MS": 0.5}
    documents = template(with_archive({"settings": given}))
    assert settings.unknown_env_vars(environment(documents)) == []
    assert chosen(documents) == settings.Settings(
        bundles="/models",
        host="0.0.0.0",
        queue_rows=10_000_000,
        max_batch_latency_ms=0.5,
    )


def test_values_make_the_other_settings():
    values = with_archive({key: {"enabled": True} for key in ("http", "tls", "tokens")})
    server = chosen(template(values))
    assert (server.http_port, server.tokens) == (8080, "/tokens/tokens.txt")
    assert server.tls_client_ca == "/tls/ca.crt"
    values["tls"] = {"enabled": True, "clientCertificates": False}
    assert chosen(template(values)).tls_client_ca == ""


def test_settings_of_any_characters_arrive():
    value = 'a="b", c: #\n$(HOME) \\ {{ d }} é$$'
    told = environment(template(with_archive({"settings": {"OTEL_RESOURCE_ATTRIBUTES": value}})))
    assert told["OTEL_RESOURCE_ATTRIBUTES"].replace("$$", "$") == value  # as Kubernetes does


def test_openshift_chooses_the_user():
    names = ("runAsUser", "runAsGroup", "fsGroup")
    values = {"podSecurityContext": dict.fromkeys(names)}
    context = pod_of(template(with_archive(values)))["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


REFUSED = {
    "misspelled value": ({"replica": 3}, "replica"),
    "misspelled setting": ({"settings": {"LATENTD_QUEUE_ROW": 1}}, "LATENTD_QUEUE_ROW"),
    "setting of the chart": ({"settings": {"LATENTD_PORT": 1}}, "LATENTD_PORT"),
    "variable of the chart": (
        with_archive({"extraEnv": [{"name": "LATENTD_PORT", "value": "1"}]}),
        "extraEnv: the chart sets LATENTD_PORT itself",
    ),
    "variable without a name": (with_archive({"extraEnv": [{"nme": "A", "value": "1"}]}), "name"),
    "label of a selector": (
        with_archive({"commonLabels": {"app.kubernetes.io/instance": "a"}}),
        "app.kubernetes.io/instance",
    ),
    "label that an alert reads": (with_archive({"podLabels": {"accelerator": "a"}}), "accelerator"),
    "no label of clients": (
        with_archive({"networkPolicy": {"clientLabels": {"latentd-client": None}}}),
        "clientLabels",
    ),
    "certificate without TLS": (
        with_archive({"tls": {"certificate": {"enabled": True, "issuerRef": {"name": "a"}}}}),
        "tls.certificate.enabled is true and tls.enabled is not",
    ),
    "setting of another type": ({"settings": {"LATENTD_QUEUE_ROWS": "many"}}, "LATENTD_QUEUE_ROWS"),
    "unknown accelerator": ({"accelerator": "tpu"}, "accelerator"),
    "no archive": ({"bundles": {"archive": {"url": ""}}}, "bundles.archive.url"),
    "no digest": ({"bundles": {"archive": {"url": "https://a/b.tar"}}}, "bundles.archive.sha256"),
    "half a digest": ({"bundles": {"archive": {"sha256": "9f86"}}}, "sha256"),
    "no image of bundles": ({"bundles": {"source": "image"}}, "bundles.image.reference"),
    "no issuer": (
        with_archive({"tls": {"enabled": True, "certificate": {"enabled": True}}}),
        "tls.certificate.issuerRef.name",
    ),
    "no gateway": (with_archive({"grpcRoute": {"enabled": True}}), "grpcRoute.parentRefs"),
    "name that no alert finds": ({"fullnameOverride": "digits"}, "fullnameOverride"),
    "too little time to stop": (
        with_archive({"settings": {"LATENTD_DRAIN_SECONDS": 120}}),
        "terminationGracePeriodSeconds is 40: set it to 136 or more",
    ),
}


@pytest.mark.parametrize(("values", "named"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused(values, named):
    ran = run_helm("template", "latentd", CHART, values=values)
    assert ran.returncode != 0
    assert named in ran.stderr


def test_chart_has_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == package["version"]


def undescribed(node: Values, path: str = "") -> list[str]:
    """The values that the schema does not describe."""
    if "properties" not in node:
        return [] if node.get("description") else [path]
    return [
        each
        for name in node["properties"]
        for each in undescribed(node["properties"][name], f"{path}.{name}")
    ]


def test_values_are_described_everywhere(tmp_path):
    """`make chart` would change nothing."""
    copy = shutil.copytree(CHART.parent, tmp_path / "helm")
    subprocess.run([sys.executable, copy / "write_values.py"], check=True, cwd=ROOT)
    for name in ("values.schema.json", "README.md"):
        assert (copy / "latentd" / name).read_text() == (CHART / name).read_text(), name
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert not undescribed(schema)
    assert not undescribed(schema["definitions"]["settings"])


def test_values_of_the_readme_work():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)
    values = yaml.safe_load(re.sub(r"(sha256: ?)\.\.\.", rf"\g<1>{SHA256}", block))
    image = pod_of(template(values))["containers"][0]["image"]
    assert image == f"YOUR/latentd@sha256:{SHA256}"


def test_commands_of_the_readme_work():
    text = README.replace("\\\n", " ")
    commands = [
        shlex.split(line) for line in re.findall(r"^helm (?:install|upgrade) .+", text, re.M)
    ]
    assert len(commands) >= 3
    for command in commands:
        arguments = [word for word in command[2:] if word != "--reset-then-reuse-values"]
        ran = run_helm("install", *arguments, "--dry-run=client")
        if "cluster unreachable" in ran.stderr:
            pytest.skip("this helm asks a cluster even in a dry run: helm 4 does not")
        assert ran.returncode == 0, ran.stderr
        name, namespace = command[2], command[command.index("--namespace") + 1]
        full = name if "latentd" in name else f"{name}-latentd"
        assert f"dns:///{full}.{namespace}.svc:50051" in ran.stdout.partition("NOTES:")[2]
