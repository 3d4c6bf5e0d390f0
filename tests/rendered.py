"""The Kubernetes manifests as they are rendered, and what the kubelet makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
NAMESPACE = "minmo"
OVERLAYS = ("cpu", "gpu")
COMPONENTS = (
    *("network-policies", "ingress", "gateway-api", "tls", "ingress-tls", "gateway-api-tls"),
    *("redis-tls", "redis-sentinel", "redis-external", "service-monitors", "hpa", "keda"),
    *("tracing", "weights-prefilled"),
)
"""All of them, in the order in which overlays list them."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    "ingress-tls": ("ingress", "tls"),
    "gateway-api-tls": ("gateway-api", "tls"),
    "redis-tls": ("tls",),
}
"""Components that are of use only beside others."""
EITHER = (("redis-tls", "redis-sentinel", "redis-external"), ("hpa", "keda"))
"""Components of which one at most can be on."""

Resource: TypeAlias = dict[str, Any]

# The one in C is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RENDER_SECONDS = 30
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class RenderError(Exception):
    """Kustomize refuses; the text is its own."""


@dataclass(frozen=True)
class Rendered:
    """An overlay with components.

    Attributes:
        overlay: which.
        components: those that are on.
        resources: what would be applied.
    """

    overlay: str
    components: tuple[str, ...]
    resources: tuple[Resource, ...]

    def of_kind(self, *kinds: str) -> list[Resource]:
        """The resources of these kinds."""
        return [resource for resource in self.resources if resource["kind"] in kinds]

    def named(self, kind: str, name: str) -> Resource:
        """One resource. KeyError if there is none."""
        for resource in self.of_kind(kind):
            if resource["metadata"]["name"] == name:
                return resource
        raise KeyError(f"no {kind} {name} in {self.overlay} with {self.components}")

    def workloads(self) -> list[Resource]:
        """What makes pods."""
        return self.of_kind("Deployment", "StatefulSet")


def choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every overlay alone, with each component, and with all that can be on together."""
    for overlay in OVERLAYS:
        yield overlay, ()
        for component in COMPONENTS:
            wanted = {component, *NEEDS.get(component, ())}
            yield overlay, tuple(name for name in COMPONENTS if name in wanted)
        for redis in EITHER[0]:
            scaler = EITHER[1][redis == "redis-sentinel"]
            left_out = {*EITHER[0], *EITHER[1]} - {redis, scaler}
            yield overlay, tuple(name for name in COMPONENTS if name not in left_out)


@cache
def render(overlay: str, components: tuple[str, ...] = ()) -> Rendered:
    """Renders an overlay with more components.

    Raises:
        RenderError: Kustomize refuses.
    """
    kubectl = Path(sys.executable).parent / "kubectl"
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "kubernetes"
        shutil.copytree(KUBERNETES, tree)
        file = tree / "overlays" / overlay / "kustomization.yaml"
        kustomization = yaml.safe_load(file.read_text())
        chosen = [f"../../components/{name}" for name in components]
        kustomization["components"] = [*(kustomization["components"] or ()), *chosen]
        file.write_text(yaml.safe_dump(kustomization))
        done = subprocess.run(
            [kubectl, "kustomize", file.parent],
            check=False,
            capture_output=True,
            text=True,
            timeout=_RENDER_SECONDS,
        )
    # What is deprecated is said as a warning.
    if done.returncode != 0 or done.stderr:
        raise RenderError(f"{overlay} with {components}: {done.stderr}")
    return Rendered(overlay, components, tuple(yaml.load_all(done.stdout, _Loader)))


# --- what the kubelet does with a pod


def pod_of(workload: Resource) -> Resource:
    """The specification of a workload's pods."""
    spec: Resource = workload["spec"]["template"]["spec"]
    return spec


def containers_of(workload: Resource) -> list[Resource]:
    """All containers of a workload's pods, in the order in which they start."""
    pod = pod_of(workload)
    return [*(pod.get("initContainers") or ()), *pod["containers"]]


def is_sidecar(container: Resource) -> bool:
    """Whether an init container goes on beside those that follow."""
    return container.get("restartPolicy") == "Always"


def environment(
    rendered: Rendered,
    container: Resource,
    secrets: Mapping[str, Mapping[str, str]],
    fields: Mapping[str, str],
) -> dict[str, str]:
    """A container's variables.

    Args:
        rendered: where its ConfigMaps are.
        container: whose.
        secrets: the Secrets, by name.
        fields: what the pod's fields say, by path.

    Raises:
        KeyError: it refers to what is not there, and would never start.
    """
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= rendered.named("ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        origin = variable.get("valueFrom", {})
        if "secretKeyRef" in origin:
            reference = origin["secretKeyRef"]
            found[variable["name"]] = secrets[reference["name"]][reference["key"]]
        elif "fieldRef" in origin:
            found[variable["name"]] = fields[origin["fieldRef"]["fieldPath"]]
        else:
            found[variable["name"]] = expanded(variable["value"], found)
    return found


def command_of(container: Resource, variables: Mapping[str, str]) -> list[str]:
    """A container's command line."""
    words = [*container["command"], *container.get("args", ())]
    return [expanded(word, variables) for word in words]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """The text with ``$(NAME)`` as the variable says; unknown names stay as they are."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def references(text: str) -> list[str]:
    """The names of variables in a text."""
    return [match[1] for match in _REFERENCE.finditer(text) if match[1]]


def port_number(container: Resource, port: int | str) -> int:
    """A port by its number or its name. KeyError if the container has none of that name."""
    if isinstance(port, int):
        return port
    for declared in container.get("ports", ()):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise KeyError(f"{container['name']} has no port {port}")
