"""What every rendering of the manifests must keep; a check says in sentences what does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tests.rendered import (
    NAMESPACE,
    Rendered,
    Resource,
    containers_of,
    is_sidecar,
    pod_of,
    port_number,
    references,
)

MADE_BY_HAND = {
    "minmo-tokens": {"tokens"},
    "minmo-internal": {"tokens", "token"},
    "minmo-redis": {"password", "users.acl", "url"},
    "minmo-edge-tls": {"tls.crt", "tls.key"},
}
"""Secrets that docs/kubernetes.md tells to make, and what is in them."""
CONFIG_MAPS_MADE_BY_HAND = {"minmo-ca"}

Findings: TypeAlias = Iterator[str]

# Time that a process takes to end after it has drained: calls that are cut, the service's own end.
_END_SECONDS = 15
_CALL = re.compile(r"(?:dns:///)?([a-z0-9.-]+):(\d+)")
_CERTIFICATE = {"tls.crt", "tls.key", "ca.crt"}


def findings(rendered: Rendered) -> list[str]:
    """All that a rendering does not keep."""
    return [finding for check in CHECKS for finding in check(rendered)]


# --- pods


def pods_have_no_rights(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        pod = pod_of(workload)
        context = pod.get("securityContext", {})
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token of the API server"
        if pod.get("enableServiceLinks") is not False:
            yield f"{name} gets variables of every Service, which may pass for settings"
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") != 10001:
            yield f"{name} does not run as user 10001"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name} shares a namespace with its node"
        for container in containers_of(workload):
            where = f"{name}/{container['name']}"
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} can write to its root"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{where} can gain rights"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where} has capabilities"
            if own.get("privileged") or {"runAsUser", "runAsNonRoot"} & own.keys():
                yield f"{where} is other than its pod"


def containers_have_bounds(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        for container in containers_of(workload):
            resources = container.get("resources", {})
            for kind in ("requests", "limits"):
                for missing in sorted({"cpu", "memory"} - resources.get(kind, {}).keys()):
                    yield f"{name}/{container['name']} has no {kind} of {missing}"
        for volume in pod_of(workload).get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{name}'s volume {volume['name']} has no limit"
            if "hostPath" in volume:
                yield f"{name} mounts its node's disk"


def images_have_versions(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        for container in containers_of(workload):
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            if tag in ("", "latest") and "@sha256:" not in container["image"]:
                yield f"{name}/{container['name']} has an image of no version: {container['image']}"


def containers_are_probed(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        for container in containers_of(workload):
            if container in pod_of(workload).get("initContainers", ()) and not is_sidecar(
                container
            ):
                continue
            where = f"{name}/{container['name']}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{where} has no {probe}"
                    continue
                actions = {"grpc", "httpGet", "tcpSocket", "exec"} & container[probe].keys()
                if len(actions) != 1:
                    yield f"{where}'s {probe} asks in {len(actions)} ways"
                if actions & {"httpGet", "tcpSocket"}:
                    port = container[probe][actions.pop()]["port"]
                    if not _has_port(container, port):
                        yield f"{where}'s {probe} asks at a port that it has not: {port}"
            for probe in ("startupProbe", "livenessProbe"):
                live = container.get(probe, {})
                if "grpc" in live or live.get("httpGet", {}).get("path") == "/readyz":
                    yield f"{where} would be started again when what it needs is away"
            if "tls" in rendered.components and "grpc" in str(container.get("readinessProbe")):
                yield f"{where} serves TLS, which the kubelet's gRPC probe does not speak"


def pods_may_end_in_peace(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        grace = pod_of(workload)["terminationGracePeriodSeconds"]
        for container in pod_of(workload)["containers"]:
            drain = float(_settings(rendered, container).get("MINMO_DRAIN_SECONDS", 0))
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            if drain and not sleep:
                yield f"{name} drains before anybody knows that it goes"
            if grace < sleep.get("seconds", 0) + drain + _END_SECONDS:
                yield f"{name} is killed after {grace} s, before it has drained"
        if workload["kind"] == "Deployment":
            rolling = workload["spec"]["strategy"]["rollingUpdate"]
            if rolling["maxUnavailable"] != 0:
                yield f"{name} is updated with replicas missing"


def pods_are_spread(rendered: Rendered) -> Findings:
    for name, workload in _named(rendered):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        spread = pod_of(workload).get("topologySpreadConstraints", ())
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone"):
            if key not in {constraint["topologyKey"] for constraint in spread}:
                yield f"{name} is not spread over {key}"
        for constraint in spread:
            if not _matches(constraint["labelSelector"], labels):
                yield f"{name} is spread among others' pods"
        budgets = [
            budget
            for budget in rendered.of_kind("PodDisruptionBudget")
            if _matches(budget["spec"]["selector"], labels)
        ]
        if len(budgets) != 1:
            yield f"{name} has {len(budgets)} disruption budgets"


# --- what refers to what


def selectors_match(rendered: Rendered) -> Findings:
    pods = [workload["spec"]["template"]["metadata"]["labels"] for workload in rendered.workloads()]
    for name, workload in _named(rendered):
        if not _matches(
            workload["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"]
        ):
            yield f"{name} does not select its own pods"
    for service in rendered.of_kind("Service"):
        name = service["metadata"]["name"]
        chosen = [
            workload
            for workload in rendered.workloads()
            if _matches(
                {"matchLabels": service["spec"]["selector"]},
                workload["spec"]["template"]["metadata"]["labels"],
            )
        ]
        if len(chosen) != 1:
            yield f"Service {name} selects {len(chosen)} workloads"
            continue
        declared = {
            port.get("name"): port["containerPort"]
            for container in containers_of(chosen[0])
            for port in container.get("ports", ())
        }
        for port in service["spec"]["ports"]:
            if declared.get(port["targetPort"]) != port["port"]:
                yield f"Service {name}'s port {port['name']} is not that of its pods"
    for policy in rendered.of_kind("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if not any(_matches(selector, labels) for labels in pods):
            yield f"NetworkPolicy {policy['metadata']['name']} selects nothing"


def references_exist(rendered: Rendered) -> Findings:
    certificates = {
        item["spec"]["secretName"]: _CERTIFICATE for item in rendered.of_kind("Certificate")
    }
    secrets = {**MADE_BY_HAND, **certificates}
    maps = {item["metadata"]["name"]: set(item["data"]) for item in rendered.of_kind("ConfigMap")}
    claims = {item["metadata"]["name"] for item in rendered.of_kind("PersistentVolumeClaim")}
    services = {
        item["metadata"]["name"]: {
            **{port["name"]: port["port"] for port in item["spec"]["ports"]},
            **{port["port"]: port["port"] for port in item["spec"]["ports"]},
        }
        for item in rendered.of_kind("Service")
    }
    for name, workload in _named(rendered):
        for container in containers_of(workload):
            for source in container.get("envFrom", ()):
                if source["configMapRef"]["name"] not in maps:
                    yield f"{name} reads a ConfigMap that is not there"
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference and reference["key"] not in secrets.get(reference["name"], ()):
                    yield f"{name} reads {reference['key']} of a Secret that nobody makes"
                if reference and reference.get("optional"):
                    yield f"{name} would start without {reference['name']}"
            yield from _variables_are_known(rendered, name, container)
        templates = workload["spec"].get("volumeClaimTemplates", ())
        volumes = {volume["name"]: volume for volume in pod_of(workload).get("volumes", ())}
        volumes |= {template["metadata"]["name"]: template for template in templates}
        mounted = {
            mount["name"]
            for container in containers_of(workload)
            for mount in container.get("volumeMounts", ())
        }
        if mounted != set(volumes):
            yield f"{name} mounts {sorted(mounted)} of {sorted(volumes)}"
        for volume in volumes.values():
            sources = volume.get("projected", {}).get("sources", [volume])
            for source in sources:
                if "configMap" in source and source["configMap"]["name"] not in maps:
                    yield f"{name} mounts a ConfigMap that is not there"
                secret = source.get("secret", {})
                if secret and secret.get("secretName", secret.get("name")) not in secrets:
                    yield f"{name} mounts a Secret that nobody makes"
            if (secret := volume.get("secret")) and secret.get("defaultMode") != 0o440:
                yield f"{name}'s secrets are for others to read"
            claim = volume.get("persistentVolumeClaim")
            if claim and claim["claimName"] not in claims:
                yield f"{name} mounts a claim that is not there"
        if "fsGroup" not in pod_of(workload).get("securityContext", {}):
            yield f"{name} could not read its secrets, nor write to its volumes"
    for name, port in _backends(rendered):
        if port not in services.get(name, ()):
            yield f"an entrance leads to {name}, port {port}, which is not there"
    for ingress in rendered.of_kind("Ingress"):
        for entry in ingress["spec"]["tls"]:
            if entry["secretName"] not in secrets:
                yield f"an entrance has a certificate that nobody makes: {entry['secretName']}"
    for policy in rendered.of_kind("BackendTLSPolicy"):
        for target in policy["spec"]["targetRefs"]:
            if target["name"] not in services:
                yield f"BackendTLSPolicy {policy['metadata']['name']} is for no Service"
        for ca in policy["spec"]["validation"]["caCertificateRefs"]:
            if ca["name"] not in CONFIG_MAPS_MADE_BY_HAND:
                yield f"BackendTLSPolicy {policy['metadata']['name']} has a CA that nobody makes"
    for scaler in rendered.of_kind("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        workload = rendered.named("Deployment", target)
        if "replicas" in workload["spec"]:
            yield f"{target} has replicas set by two"


def all_is_in_the_namespace(rendered: Rendered) -> Findings:
    for resource in rendered.resources:
        if resource["kind"] == "Namespace":
            level = resource["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
            if level != "restricted":
                yield "the namespace lets pods do more than they need"
        elif resource["metadata"].get("namespace") != NAMESPACE:
            yield f"{resource['kind']} {resource['metadata']['name']} is in no namespace"
    for kind in ("Secret",):
        for resource in rendered.of_kind(kind):
            yield f"a Secret is shipped: {resource['metadata']['name']}"


def replicas_are_seen_by_their_callers(rendered: Rendered) -> Findings:
    services = {item["metadata"]["name"]: item["spec"] for item in rendered.of_kind("Service")}
    for name, workload in _named(rendered):
        for container in containers_of(workload):
            for value in _settings(rendered, container).values():
                if not value.startswith("dns:///"):
                    continue
                called = services.get(value.removeprefix("dns:///").partition(":")[0], {})
                if called.get("clusterIP") != "None":
                    yield f"{name} sees one address of {value}, and would stay on one replica"
                if called.get("publishNotReadyAddresses") is not True:
                    yield f"{name} may find {value} late, once it is ready"


# --- who talks with whom


Call: TypeAlias = tuple[str, str, int]
"""Who calls, who is called, at which port."""

WORLD = "anywhere"
DNS = "dns"


def calls_made(rendered: Rendered) -> set[Call]:
    """The calls that the pods make and get, as their settings and the other resources have it."""
    calls: set[Call] = set()
    services = {item["metadata"]["name"]: item for item in rendered.of_kind("Service")}
    for workload in rendered.workloads():
        caller = _component(workload)
        for container in containers_of(workload):
            settings = _settings(rendered, container)
            for key, value in settings.items():
                if not (key.endswith("_ADDRESS") or key in _URLS):
                    continue
                for host, port in _CALL.findall(value.rpartition("@")[2]):
                    if host.startswith("127."):
                        continue
                    calls |= {(caller, _called(host, services), int(port)), (caller, DNS, 53)}
                    if "sentinel://" in value:
                        # It says where the master is.
                        calls.add((caller, "redis", 6379))
            if container["name"] == "weights":
                calls |= {(caller, WORLD, 443), (caller, DNS, 53)}
    if "redis-sentinel" in rendered.components:
        calls |= {("redis", "redis", 6379), ("redis", "redis", 26379), ("redis", DNS, 53)}
    if "redis-external" in rendered.components:
        calls |= {("orchestrator", WORLD, 6379), ("orchestrator", WORLD, 26379)}
    for name, port in _backends(rendered):
        if name in services:
            service = services[name]
            calls.add(("minmo/edge", _component_of(service), _port_of(service, port)))
    for monitor in rendered.of_kind("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            for service in services.values():
                if not _matches(monitor["spec"]["selector"], service["metadata"]["labels"]):
                    continue
                for port in service["spec"]["ports"]:
                    if port["name"] == endpoint["port"]:
                        calls.add(("minmo/monitoring", _component_of(service), port["port"]))
    return calls


def calls_allowed(rendered: Rendered) -> set[Call]:
    """The calls that both ends' network policies allow."""
    pods = {
        _component(workload): workload["spec"]["template"]["metadata"]["labels"]
        for workload in rendered.workloads()
    }
    out = _allowed(rendered, pods, "egress", "to")
    into = {(peer, own, port) for own, peer, port in _allowed(rendered, pods, "ingress", "from")}
    return {
        call
        for call in out | into
        if (call in out or call[0] not in pods) and (call in into or call[1] not in pods)
    }


def policies_allow_what_is_called(rendered: Rendered) -> Findings:
    if "network-policies" not in rendered.components:
        if policies := rendered.of_kind("NetworkPolicy"):
            yield f"there are {len(policies)} network policies that nobody asked for"
        return
    deny = rendered.named("NetworkPolicy", "default-deny")["spec"]
    if deny != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "not all is denied that is not allowed"
    made, allowed = calls_made(rendered), calls_allowed(rendered)
    for caller, called, port in sorted(made - allowed):
        yield f"{caller} may not call {called} at {port}"
    for caller, called, port in sorted(allowed - made):
        yield f"{caller} may call {called} at {port}, and never does"


CHECKS: tuple[Callable[[Rendered], Findings], ...] = (
    pods_have_no_rights,
    containers_have_bounds,
    images_have_versions,
    containers_are_probed,
    pods_may_end_in_peace,
    pods_are_spread,
    selectors_match,
    references_exist,
    all_is_in_the_namespace,
    replicas_are_seen_by_their_callers,
    policies_allow_what_is_called,
)

_URLS = ("MINMO_REDIS_URL", "MINMO_TRACING_ENDPOINT")


def _allowed(
    rendered: Rendered, pods: dict[str, dict[str, str]], direction: str, key: str
) -> set[Call]:
    """Who is on one side, who on the other, and the port, as the policies of one direction say."""
    found: set[Call] = set()
    for policy in rendered.of_kind("NetworkPolicy"):
        spec = policy["spec"]
        own = [name for name, labels in pods.items() if _matches(spec["podSelector"], labels)]
        for rule in spec.get(direction) or ():
            peers = [name for peer in rule[key] for name in _peers(peer, pods)]
            ports = {port["port"] for port in rule["ports"]}
            found |= {(name, peer, port) for name in own for peer in peers for port in ports}
    return found


def _peers(peer: Resource, pods: dict[str, dict[str, str]]) -> list[str]:
    if "ipBlock" in peer:
        assert peer["ipBlock"]["cidr"] == "0.0.0.0/0", peer
        return [WORLD]
    if namespace := peer.get("namespaceSelector"):
        labels = namespace["matchLabels"]
        if labels == {"kubernetes.io/metadata.name": "kube-system"}:
            assert peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}, peer
            return [DNS]
        (label,) = labels
        assert labels[label] == "true", peer
        assert "podSelector" not in peer, peer
        return [label]
    return [name for name, labels in pods.items() if _matches(peer["podSelector"], labels)]


def _called(host: str, services: dict[str, Resource]) -> str:
    """The component that a name leads to: of a Service, or of one pod of a StatefulSet."""
    service = services.get(host) or services.get(host.partition(".")[2])
    if service is not None:
        return _component_of(service)
    return {"otel-collector.observability": "minmo/tracing"}[host]


def _component(workload: Resource) -> str:
    label: str = workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
    return label


def _component_of(service: Resource) -> str:
    label: str = service["spec"]["selector"]["app.kubernetes.io/component"]
    return label


def _port_of(service: Resource, port: int | str) -> int:
    for known in service["spec"]["ports"]:
        if port in (known["name"], known["port"]):
            return int(known["port"])
    raise KeyError(f"{service['metadata']['name']} has no port {port}")


def _backends(rendered: Rendered) -> Iterator[tuple[str, int | str]]:
    """The Services, with their ports, that the world is let to."""
    for ingress in rendered.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"]["name"]
    for route in rendered.of_kind("HTTPRoute", "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield backend["name"], backend["port"]


def _settings(rendered: Rendered, container: Resource) -> dict[str, str]:
    """A container's variables that no Secret and no field has."""
    found = _from_maps(rendered, container)
    for variable in container.get("env", ()):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
    return found


def _from_maps(rendered: Rendered, container: Resource) -> dict[str, str]:
    """What its ConfigMaps say, as far as they are there."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for item in rendered.of_kind("ConfigMap"):
            if item["metadata"]["name"] == source["configMapRef"]["name"]:
                found |= item["data"]
    return found


def _variables_are_known(rendered: Rendered, name: str, container: Resource) -> Findings:
    """The kubelet leaves ``$(NAME)`` as it is where the variable comes later, or never."""
    known = set(_from_maps(rendered, container))
    for variable in container.get("env", ()):
        for reference in references(str(variable.get("value", ""))):
            if reference not in known:
                yield f"{name}: {variable['name']} names {reference} before it is known"
        known.add(variable["name"])
    for word in (*container["command"], *container.get("args", ())):
        for reference in references(word):
            if reference not in known:
                yield f"{name}: its command names {reference}, which is unknown"


def _has_port(container: Resource, port: int | str) -> bool:
    try:
        number = port_number(container, port)
    except KeyError:
        return False
    return number in {declared["containerPort"] for declared in container.get("ports", ())}


def _matches(selector: Resource, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def _named(rendered: Rendered) -> Iterator[tuple[str, Resource]]:
    for workload in rendered.workloads():
        yield workload["metadata"]["name"], workload
