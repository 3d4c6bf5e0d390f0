"""The Kubernetes manifests: every overlay, with each component and with all of them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from minmo.rpc.metrics import METRICS, minmo_version
from tests import deployment_settings
from tests.kubernetes_policy import (
    containers_have_bounds,
    findings,
    images_have_versions,
    pods_have_no_rights,
)
from tests.rendered import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Rendered,
    Resource,
    choices,
    containers_of,
    environment,
    pod_of,
    render,
)

WITHOUT_SCHEMA = {
    ("cert-manager.io/v1", "Certificate"),
    ("cert-manager.io/v1", "Issuer"),
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
}
"""Kinds that are not Kubernetes' own: `kubernetes-validate` has no schema of them."""
VERSION = kubernetes_validate.latest_version()
SECRETS = {
    "minmo-tokens": {"tokens": "one,two"},
    "minmo-internal": {"tokens": "inside", "token": "inside"},
    "minmo-redis": {"password": "secret", "url": "rediss://:secret@redis.example:6380/0"},
}
FIELDS = {"metadata.uid": "uid", "metadata.name": "redis-0"}

ALL = list(choices())
FULL = ("cpu", tuple(name for name in COMPONENTS if name not in ("redis-external", "keda")))


def name_of(choice: object) -> str:
    match choice:
        case (overlay, (*components,)):
            return f"{overlay}: {' '.join(components) or 'alone'}"
    return str(choice)


@cache
def has_schema(text: str) -> bool:
    """Validates a resource; whether there is a schema to do it with."""
    resource = json.loads(text)
    try:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    return True


@pytest.mark.parametrize("choice", ALL, ids=name_of)
def test_a_rendering_is_valid_and_keeps_the_policy(choice: tuple[str, tuple[str, ...]]) -> None:
    rendered = render(*choice)
    without = {
        (resource["apiVersion"], resource["kind"])
        for resource in rendered.resources
        if not has_schema(json.dumps(resource, sort_keys=True))
    }
    assert without <= WITHOUT_SCHEMA
    assert findings(rendered) == []


@pytest.mark.parametrize("choice", ALL, ids=name_of)
def test_services_are_told_what_they_can_be_told(choice: tuple[str, tuple[str, ...]]) -> None:
    rendered = render(*choice)
    told = {
        container["name"]: environment(rendered, container, SECRETS, FIELDS)
        for workload in rendered.workloads()
        for container in containers_of(workload)
        if container["name"] in deployment_settings.SETTINGS
    }
    assert told.keys() == deployment_settings.SETTINGS.keys()
    for name, variables in told.items():
        assert deployment_settings.problems(name, variables) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_lists_every_component_in_the_order_that_works(overlay: str) -> None:
    text = (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
    listed = re.findall(r"# - \.\./\.\./components/(\S+)", text)
    assert tuple(listed) == COMPONENTS
    there = {folder.name for folder in (KUBERNETES / "components").iterdir()}
    assert there == {*COMPONENTS, "gpu"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_those_of_this_version(overlay: str) -> None:
    for workload in render(overlay).workloads():
        for container in containers_of(workload):
            image, _, tag = container["image"].partition(":")
            if image.startswith("minmo/"):
                assert tag.partition("-")[0] == minmo_version()


def test_gpus_are_asked_for_where_something_computes() -> None:
    rendered = render("gpu")
    with_gpu = {
        container["name"]
        for workload in rendered.workloads()
        for container in containers_of(workload)
        if container["resources"]["limits"].get("nvidia.com/gpu") == 1
    }
    assert with_gpu == {"encoder", "triton", "voice-decoder"}
    for name in ("encoder", "llm", "voice-decoder"):
        pod = pod_of(rendered.named("Deployment", name))
        assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_triton_outlives_its_front_and_has_its_memory() -> None:
    pod = pod_of(render("cpu").named("Deployment", "llm"))
    names = [container["name"] for container in pod["initContainers"]]
    triton = pod["initContainers"][-1]
    assert names == ["weights", "triton"]
    assert triton["restartPolicy"] == "Always"
    (volume,) = [v["name"] for v in triton["volumeMounts"] if v["mountPath"] == "/dev/shm"]
    (shared,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == volume]
    assert shared["medium"] == "Memory"


# --- what is done by hand


def test_the_docs_tell_to_make_the_secrets_that_pods_read() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", " ")
    made = {
        name: set(re.findall(r"--from-literal=([a-z.]+)=", line))
        for line in text.splitlines()
        for name in re.findall(r"^kubectl -n minmo create secret generic (\S+)", line)
    }
    read: dict[str, set[str]] = {}
    for workload in render("cpu").workloads():
        for container in containers_of(workload):
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    read.setdefault(reference["name"], set()).add(reference["key"])
    assert made == read | {"minmo-redis": read["minmo-redis"] | {"users.acl"}}


@pytest.mark.parametrize("name", ["weights-volume", "redis-volume"])
def test_pods_for_work_by_hand_have_no_rights_either(name: str) -> None:
    resource = yaml.safe_load((KUBERNETES / "tools" / f"{name}.yaml").read_text())
    kubernetes_validate.validate(resource, VERSION, strict=True)
    template = {"metadata": resource["metadata"], "spec": resource["spec"]}
    workload = {
        "kind": "Deployment",
        "metadata": resource["metadata"],
        "spec": {"template": template},
    }
    alone = Rendered("cpu", (), (workload,))
    for check in (pods_have_no_rights, containers_have_bounds, images_have_versions):
        assert list(check(alone)) == []
    claims = {item["metadata"]["name"] for item in render("cpu").of_kind("PersistentVolumeClaim")}
    volumes = [volume.get("persistentVolumeClaim") for volume in pod_of(workload)["volumes"]]
    (claim,) = [volume["claimName"] for volume in volumes if volume]
    # A StatefulSet's claim has the names of its template and its pod.
    assert claim in claims | {"redis-redis-0"}


# --- scaling


def adapter_rules() -> list[dict[str, Any]]:
    values = yaml.safe_load((KUBERNETES / "components/hpa/prometheus-adapter.yaml").read_text())
    rules: list[dict[str, Any]] = values["rules"]["custom"]
    return rules


def metrics_in(expression: str) -> set[str]:
    return {
        re.sub(r"_(sum|count|bucket)$", "", name) if name not in METRICS else name
        for name in re.findall(r"\bminmo_\w+", expression)
    }


def test_autoscalers_scale_by_metrics_that_the_adapter_makes() -> None:
    wanted = {
        metric["pods"]["metric"]["name"]
        for scaler in render("cpu", ("hpa",)).of_kind("HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert wanted == {rule["name"]["as"] for rule in adapter_rules()}


def test_what_scales_is_measured() -> None:
    expressions = [rule[key] for rule in adapter_rules() for key in ("seriesQuery", "metricsQuery")]
    expressions += [
        trigger["metadata"]["query"]
        for scaler in render("cpu", ("keda",)).of_kind("ScaledObject")
        for trigger in scaler["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    for expression in expressions:
        assert metrics_in(expression) <= METRICS.keys()


@pytest.mark.parametrize("kind", ["HorizontalPodAutoscaler", "ScaledObject"])
def test_every_service_scales(kind: str) -> None:
    component = {"HorizontalPodAutoscaler": "hpa", "ScaledObject": "keda"}[kind]
    rendered = render("cpu", (component,))
    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in rendered.of_kind(kind)}
    assert scaled == {item["metadata"]["name"] for item in rendered.of_kind("Deployment")}


# --- the policy itself


def broken(change: Callable[[Rendered], object], choice: tuple[str, tuple[str, ...]]) -> list[str]:
    """What the policy finds once something has been changed."""
    known = render(*choice)
    own = Rendered(known.overlay, known.components, copy.deepcopy(known.resources))
    change(own)
    return findings(own)


def container(rendered: Rendered, workload: str = "encoder", index: int = -1) -> Resource:
    return containers_of(rendered.named("Deployment", workload))[index]


def pod(rendered: Rendered, workload: str = "encoder") -> Resource:
    return pod_of(rendered.named("Deployment", workload))


def certificate(rendered: Rendered) -> Resource:
    (found,) = [volume["secret"] for volume in pod(rendered)["volumes"] if "secret" in volume]
    return found


def policy(rendered: Rendered, name: str) -> Resource:
    spec: Resource = rendered.named("NetworkPolicy", name)["spec"]
    return spec


def rename(rendered: Rendered, kind: str, name: str) -> None:
    rendered.named(kind, name)["metadata"]["name"] = "another"


def relabel(rendered: Rendered, kind: str, name: str) -> None:
    item = rendered.named(kind, name)
    item["spec"]["selector"] = {"app.kubernetes.io/component": "nobody"}


CHANGES: dict[str, Callable[[Rendered], object]] = {
    "does not run as user 10001": lambda r: pod(r)["securityContext"].update(runAsUser=0),
    "has no seccomp profile": lambda r: pod(r)["securityContext"].pop("seccompProfile"),
    "gets a token of the API server": lambda r: pod(r).pop("automountServiceAccountToken"),
    "gets variables of every Service": lambda r: pod(r).pop("enableServiceLinks"),
    "shares a namespace": lambda r: pod(r).update(hostNetwork=True),
    "can write to its root": lambda r: container(r)["securityContext"].pop(
        "readOnlyRootFilesystem"
    ),
    "can gain rights": lambda r: container(r)["securityContext"].pop("allowPrivilegeEscalation"),
    "has capabilities": lambda r: container(r)["securityContext"].pop("capabilities"),
    "is other than its pod": lambda r: container(r)["securityContext"].update(runAsUser=0),
    "has no limits of memory": lambda r: container(r)["resources"]["limits"].pop("memory"),
    "has no requests of cpu": lambda r: container(r, "llm", 1)["resources"]["requests"].pop("cpu"),
    "has no limit": lambda r: pod(r)["volumes"][-1]["emptyDir"].clear(),
    "mounts its node's disk": lambda r: pod(r)["volumes"].append(
        {"name": "node", "hostPath": {"path": "/"}}
    ),
    "an image of no version": lambda r: container(r).update(image="minmo/encoder:latest"),
    "has no readinessProbe": lambda r: container(r, "llm", 1).pop("readinessProbe"),
    "asks at a port that it has not": lambda r: container(r)["livenessProbe"]["httpGet"].update(
        port=1
    ),
    "would be started again": lambda r: container(r)["livenessProbe"]["httpGet"].update(
        path="/readyz"
    ),
    "which the kubelet's gRPC probe does not speak": lambda r: container(r)[
        "readinessProbe"
    ].update(grpc={"port": 7101}),
    "drains before anybody knows": lambda r: container(r).pop("lifecycle"),
    "is killed after": lambda r: pod(r).update(terminationGracePeriodSeconds=60),
    "is updated with replicas missing": lambda r: r.named("Deployment", "encoder")["spec"][
        "strategy"
    ]["rollingUpdate"].update(maxUnavailable=1),
    "is not spread over": lambda r: pod(r)["topologySpreadConstraints"].pop(),
    "is spread among others": lambda r: pod(r)["topologySpreadConstraints"][0][
        "labelSelector"
    ].update(matchLabels={"app.kubernetes.io/component": "llm"}),
    "has 0 disruption budgets": lambda r: r.named("PodDisruptionBudget", "encoder")["spec"][
        "selector"
    ].update(matchLabels={"app.kubernetes.io/component": "nobody"}),
    "does not select its own pods": lambda r: r.named("Deployment", "encoder")["spec"][
        "selector"
    ].update(matchLabels={"app.kubernetes.io/component": "llm"}),
    "selects 0 workloads": lambda r: relabel(r, "Service", "encoder"),
    "is not that of its pods": lambda r: r.named("Service", "encoder")["spec"]["ports"][0].update(
        port=7102
    ),
    "would stay on one replica": lambda r: r.named("Service", "llm")["spec"].pop("clusterIP"),
    "once it is ready": lambda r: r.named("Service", "llm")["spec"].pop("publishNotReadyAddresses"),
    "reads a ConfigMap that is not there": lambda r: container(r)["envFrom"].append(
        {"configMapRef": {"name": "nowhere"}}
    ),
    "of a Secret that nobody makes": lambda r: container(r)["env"].append(
        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "x"}}}
    ),
    "would start without": lambda r: [
        variable["valueFrom"]["secretKeyRef"].update(optional=True)
        for variable in container(r)["env"]
        if "valueFrom" in variable
    ],
    "before it is known": lambda r: container(r)["env"].insert(
        0, {"name": "X", "value": "$(MINMO_TOKEN)"}
    ),
    "which is unknown": lambda r: container(r)["command"].append("$(NOBODY)"),
    "mounts a Secret that nobody makes": lambda r: certificate(r).update(secretName="nowhere"),
    "secrets are for others to read": lambda r: certificate(r).update(defaultMode=0o444),
    "could not read its secrets": lambda r: pod(r)["securityContext"].pop("fsGroup"),
    "mounts a claim that is not there": lambda r: rename(r, "PersistentVolumeClaim", "weights"),
    "an entrance leads to": lambda r: rename(r, "Service", "orchestrator-public"),
    "a certificate that nobody makes": lambda r: r.named("Ingress", "gateway")["spec"]["tls"][
        0
    ].update(secretName="nowhere"),
    "is for no Service": lambda r: r.named("BackendTLSPolicy", "gateway")["spec"]["targetRefs"][
        0
    ].update(name="nowhere"),
    "has replicas set by two": lambda r: r.named("Deployment", "encoder")["spec"].update(
        replicas=2
    ),
    "is in no namespace": lambda r: r.named("Service", "encoder")["metadata"].pop("namespace"),
    "the namespace lets pods do more": lambda r: r.named("Namespace", "minmo")["metadata"][
        "labels"
    ].clear(),
    "a Secret is shipped": lambda r: r.of_kind("ConfigMap")[-1].update(kind="Secret"),
    "not all is denied": lambda r: policy(r, "default-deny").update(policyTypes=["Ingress"]),
    "orchestrator may not call encoder": lambda r: policy(r, "encoder")["ingress"].pop(0),
    "orchestrator may not call dns": lambda r: policy(r, "orchestrator")["egress"].pop(0),
    "minmo/monitoring may not call llm at 8002": lambda r: policy(r, "llm")["ingress"].pop(),
    "gateway may call redis at 6379, and never does": lambda r: [
        policy(r, "gateway")["egress"].append(
            {
                "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "redis"}}}],
                "ports": [{"port": 6379}],
            }
        ),
        policy(r, "redis")["ingress"].append(
            {
                "from": [
                    {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
                ],
                "ports": [{"port": 6379}],
            }
        ),
    ],
}


@pytest.mark.parametrize("finding", CHANGES)
def test_the_policy_finds(finding: str) -> None:
    choice = FULL[0], tuple(name for name in FULL[1] if name != "redis-sentinel")
    found = broken(CHANGES[finding], choice)
    assert any(finding in line for line in found), found
