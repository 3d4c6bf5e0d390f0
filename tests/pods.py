"""Pods of rendered manifests as processes on this machine, and a kubelet for them.

A pod gets a network of its own (a namespace with an address), a container a root of its own: this
machine's system, Python and MinMo where the images have them, read-only, with the volumes that the
manifest says, as its user, without rights. A name server knows the Services: the addresses of their
ready pods. The kubelet runs init containers, starts containers, asks probes as they are written,
and stops a pod with preStop, SIGTERM and the grace period. What it leaves out: limits of CPU and
memory, seccomp, network policies; all pods are on one node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2

from minmo.rpc.health import SERVICE_NAME
from minmo.stack import redis
from minmo.weights import home, triton
from tests import debian
from tests.names import Names
from tests.rendered import (
    NAMESPACE,
    ROOT,
    Rendered,
    Resource,
    command_of,
    environment,
    is_sidecar,
    pod_of,
    port_number,
)

USER = 10001
# Reserved for tests of networks; a node has 256 of its addresses.
_NETWORK = "198.18"
_SEARCH = f"{NAMESPACE}.svc.cluster.local"
_COMMAND_SECONDS = 30
_INIT_SECONDS = 60
_CODES = range(200, 400)
_SYSTEM_PATH = "/usr/bin:/bin"
# Of /etc, what programs need; hosts, resolv.conf and passwd are a container's own.
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "alternatives", "nsswitch.conf")
_DEVICES = ("null", "zero", "full", "random", "urandom")


class PodError(AssertionError):
    """A pod did not do what its manifest says; the text has the end of its log."""


@dataclass(frozen=True)
class Image:
    """What an image has beside the system.

    Attributes:
        path: where programs are.
        parts: a path in the image, and what of this machine is there.
        variables: that its Dockerfile sets and that matter here.
        links: symbolic links in it, and what they lead to.
    """

    path: str
    parts: Mapping[str, Path]
    variables: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


def images() -> dict[str, Image]:
    """The images of the manifests, made of what this machine has. Skips where a part is missing."""
    minmo = {f"/opt/minmo/{part.name}": part for part in Path(sys.prefix).iterdir()}
    server = {
        "/opt/minmo/deploy/triton": ROOT / "deploy" / "triton",
        "/opt/triton": home.triton_folder(),
    }
    inside = triton.server_binary().parent.parent.relative_to(home.triton_folder())
    path = f"/opt/minmo/bin:/opt/tritonserver/bin:{_SYSTEM_PATH}"
    libraries = {"LD_LIBRARY_PATH": triton.library_path()}
    valkey = {
        "/opt/valkey/valkey-server": redis.binary(),
        "/opt/valkey/valkey-cli": redis_client(),
    }
    services = ("cli", "encoder", "llm", "voice-decoder", "orchestrator", "gateway")
    return {
        **{f"minmo/{name}": Image(path, minmo) for name in services},
        "minmo/triton": Image(
            path, {**minmo, **server}, libraries, {"/opt/tritonserver": f"/opt/triton/{inside}"}
        ),
        "valkey/valkey": Image(f"/opt/valkey:{_SYSTEM_PATH}", valkey),
    }


@cache
def redis_client() -> Path:
    """Redis' client, which the package of the server has not; installs Debian's where it may."""
    found = debian.program(["valkey-cli", "redis-cli"], "redis-tools")
    if found is None:
        pytest.skip("needs redis-cli: apt-get install redis-tools")
    return found


def check_machine() -> None:
    """Skips where there can be no pods."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    for program in ("ip", "nsenter", "unshare", "setpriv", "chroot", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install iproute2 util-linux mount")
    with contextlib.ExitStack() as stack:
        name = f"minmo-{uuid.uuid4().hex[:8]}"
        if _try("ip", "netns", "add", name):
            stack.callback(_try, "ip", "netns", "delete", name)
            if _try("nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "true"):
                return
    pytest.skip("this machine gives no namespaces")


def _try(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=_COMMAND_SECONDS)
    return done.returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_COMMAND_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Container:
    """A container of a pod.

    Args:
        pod: whose.
        spec: as the manifest has it.
    """

    def __init__(self, pod: Pod, spec: Resource) -> None:
        self.pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        self.started = asyncio.Event()
        """Set once the startup probe has succeeded."""
        self.ready = False
        self.process: asyncio.subprocess.Process | None = None
        self._log = pod.folder / f"{self.name}.log"
        self._tasks: list[asyncio.Task[None]] = []
        image = spec["image"].rpartition(":")[0]
        self._image = pod.node.images[image]
        variables = environment(pod.node.rendered, spec, pod.node.secrets, pod.fields)
        self.environment = {"PATH": self._image.path, **self._image.variables, **variables}
        self._command = command_of(spec, variables)

    @property
    def log(self) -> str:
        """The end of what it said."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    async def start(self) -> None:
        """Starts its process."""
        script = self._log.with_suffix(".sh")
        script.write_text(self._script())
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("nsenter", f"--net={self.pod.network}", "unshare", "--mount"),
                *("sh", str(script), *self._command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def finish(self) -> None:
        """Runs it to its end: an init container."""
        await self.start()
        assert self.process is not None
        try:
            status = await asyncio.wait_for(self.process.wait(), _INIT_SECONDS)
        except TimeoutError:
            raise PodError(f"{self} does not end: {self.log}") from None
        if status != 0:
            raise PodError(f"{self} ended with {status}: {self.log}")

    def watch(self) -> None:
        """Asks its probes, as long as it runs."""
        self._tasks.append(asyncio.create_task(self._follow()))

    async def _follow(self) -> None:
        """Startup first, then the two others beside each other."""
        failed = 0
        probe = self.spec["startupProbe"]
        while not await self._asked(probe):
            failed += 1
            self._check_runs()
            if failed >= probe["failureThreshold"]:
                self.pod.fail(f"{self} has not started: {self.log}")
                return
            await asyncio.sleep(probe["periodSeconds"])
        self.started.set()
        self._tasks += [
            asyncio.create_task(self._follow_readiness(self.spec["readinessProbe"])),
            asyncio.create_task(self._follow_liveness(self.spec["livenessProbe"])),
        ]

    async def _follow_readiness(self, probe: Resource) -> None:
        failed = 0
        while True:
            if await self._asked(probe):
                failed, self.ready = 0, True
            else:
                failed += 1
                if failed >= probe["failureThreshold"]:
                    self.ready = False
            self.pod.readiness_changed()
            await asyncio.sleep(probe["periodSeconds"])

    async def _follow_liveness(self, probe: Resource) -> None:
        failed = 0
        while failed < probe["failureThreshold"]:
            failed = 0 if await self._asked(probe) else failed + 1
            self._check_runs()
            await asyncio.sleep(probe["periodSeconds"])
        self.pod.fail(f"{self} does not live: {self.log}")

    def _check_runs(self) -> None:
        assert self.process is not None
        if self.process.returncode is not None and not self.pod.ending:
            self.pod.fail(f"{self} ended with {self.process.returncode}: {self.log}")

    async def _asked(self, probe: Resource) -> bool:
        """One question of a probe."""
        try:
            async with asyncio.timeout(probe["timeoutSeconds"]):
                match probe:
                    case {"grpc": {"port": port}}:
                        return await _serves(f"{self.pod.address}:{port}")
                    case {"httpGet": {"path": path, "port": port, **rest}}:
                        scheme = str(rest.get("scheme", "HTTP")).lower()
                        number = port_number(self.spec, port)
                        return await _answers(f"{scheme}://{self.pod.address}:{number}{path}")
                    case {"tcpSocket": {"port": port}}:
                        number = port_number(self.spec, port)
                        _, writer = await asyncio.open_connection(self.pod.address, number)
                        writer.close()
                        return True
                    case {"exec": {"command": command}}:
                        return await self.execute(command) == 0
        except (TimeoutError, OSError, aiohttp.ClientError, grpc.aio.AioRpcError):
            return False
        raise AssertionError(f"{self} is asked in an unknown way: {probe}")

    async def execute(self, command: Sequence[str]) -> int:
        """Runs a command in the container; returns its status. What it says is in a log."""
        assert self.process is not None
        with self._log.with_suffix(".exec.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *("nsenter", f"--target={self.process.pid}", "--mount", "--net", "--root", "--wd"),
                *(*_user(self.pod.spec), *command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def prepare_to_stop(self) -> None:
        """Its preStop."""
        match self.spec.get("lifecycle", {}).get("preStop"):
            case {"sleep": {"seconds": seconds}}:
                await asyncio.sleep(seconds)
            case {"exec": {"command": command}}:
                await self.execute(command)

    async def stop(self) -> None:
        """SIGTERM, and its end."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    def stop_probes(self) -> None:
        """Asks no more."""
        for task in self._tasks:
            task.cancel()

    async def kill(self) -> None:
        """Ends whatever is left of it."""
        self.stop_probes()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()

    def __str__(self) -> str:
        return f"{self.pod.name}/{self.name}"

    def _script(self) -> str:
        """Makes the container's root, then becomes its process."""
        root = self.pod.folder / f"{self.name}-root"
        root.mkdir(exist_ok=True)
        lines = [
            "set -eu",
            "umask 022",
            f"R={root}",
            "mount -t tmpfs -o mode=755 tmpfs $R",
            # $1 is of this machine, $2 the path in the container, $3 how.
            'put() { if [ -d "$1" ]; then mkdir -p "$R$2"; else mkdir -p "$(dirname "$R$2")"; '
            ': >"$R$2"; fi; mount --rbind "$1" "$R$2"; '
            'if [ "$3" = ro ]; then mount -o remount,bind,ro "$R$2"; fi; }',
            "put /usr /usr ro",
            "for name in bin sbin lib lib64; do ",
            '  if [ -L "/$name" ]; then cp -P "/$name" "$R/$name"; ',
            '  elif [ -d "/$name" ]; then put "/$name" "/$name" ro; fi',
            "done",
            "put /proc /proc rw",
            *(f"put /dev/{name} /dev/{name} rw" for name in _DEVICES),
            *(f"if [ -e /etc/{name} ]; then put /etc/{name} /etc/{name} ro; fi" for name in _ETC),
        ]
        own = self.pod.folder / "etc"
        lines += [f"put {own / name} /etc/{name} ro" for name in ("hosts", "resolv.conf", "passwd")]
        for here in {Path(sys.base_prefix), ROOT, Path(sys.prefix)}:
            if here != Path("/usr") and (here == ROOT or not here.is_relative_to(ROOT)):
                lines.append(f"put {here} {here} ro")
        lines += [f"put {here} {there} ro" for there, here in self._image.parts.items()]
        lines += [f"ln -s {there} $R{here}" for here, there in self._image.links.items()]
        for mount in self.spec.get("volumeMounts", ()):
            volume = self.pod.volumes[mount["name"]]
            how = "ro" if mount.get("readOnly") else "rw"
            lines.append(f"put {volume} {mount['mountPath']} {how}")
        # Where a volume has its mountpoint, the runtime made it before the root was read-only.
        lines += [
            "mount -o remount,ro $R",
            f'exec {shutil.which("chroot")} $R {" ".join(_user(self.pod.spec))} "$@"',
        ]
        return "\n".join(lines) + "\n"


class Pod:
    """A pod of a workload.

    Args:
        node: where it runs.
        name: its own.
        workload: what makes it.
        number: makes its address.
    """

    def __init__(self, node: Node, name: str, workload: Resource, number: int) -> None:
        self.node = node
        self.name = name
        self.workload = workload
        self.spec = pod_of(workload)
        self.labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
        self.address = f"{node.network}.{number}"
        self.folder = node.folder / f"{name}.{number}"
        self.fields = {"metadata.name": name, "metadata.uid": str(uuid.uuid4())}
        self.volumes: dict[str, Path] = {}
        self.containers: list[Container] = []
        self.ending = False
        self.ready = False
        self.gone = False
        self._sidecars: list[Container] = []
        self._mounted: list[Path] = []
        self._changed = asyncio.Event()
        self._problem = ""
        self._namespace = f"{node.id}-{number}"
        self._cable = f"{node.id}.{number}"

    @property
    def network(self) -> Path:
        """Its network namespace."""
        return Path("/run/netns") / self._namespace

    def container(self, name: str) -> Container:
        """One of its containers."""
        (found,) = [item for item in (*self._sidecars, *self.containers) if item.name == name]
        return found

    async def start(self) -> None:
        """Init containers one by one, then all others; returns when these are under way."""
        self.set_up()
        for spec in self.spec.get("initContainers") or ():
            container = Container(self, spec)
            if not is_sidecar(spec):
                await container.finish()
                continue
            self._sidecars.append(container)
            await container.start()
            container.watch()
            await self._unless_failed(container.started.wait())
        self.containers = [Container(self, spec) for spec in self.spec["containers"]]
        for container in self.containers:
            await container.start()
            container.watch()

    def set_up(self) -> None:
        """Makes its network and its volumes; once."""
        if self.volumes:
            return
        self._connect()
        self._make_etc()
        self._make_volumes()
        self.node.update_names()

    async def run(self, name: str, *command: str) -> None:
        """Runs one of its containers with another command, to its end. PodError if that fails."""
        self.set_up()
        (spec,) = [spec for spec in self.spec["containers"] if spec["name"] == name]
        await Container(self, {**spec, "command": list(command), "args": []}).finish()

    async def wait_ready(self, seconds: float) -> None:
        """Returns when all its containers are ready."""
        try:
            async with asyncio.timeout(seconds):
                while not self.ready:
                    await self._unless_failed(self._changed.wait())
        except TimeoutError:
            logs = "\n".join(container.log for container in self.containers)
            raise PodError(f"{self.name} is not ready after {seconds:g} s: {logs}") from None

    async def wait_not_ready(self, seconds: float) -> None:
        """Returns when one of its containers is not."""
        async with asyncio.timeout(seconds):
            while self.ready:
                await self._unless_failed(self._changed.wait())

    async def stop(self) -> float:
        """Ends it as the kubelet does; returns how long it took.

        Raises:
            PodError: the grace period was not enough, or a container ended with an error.
        """
        began = time.monotonic()
        self.ending = True
        self.readiness_changed()
        grace: float = self.spec["terminationGracePeriodSeconds"]
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*(self._end(container) for container in self.containers))
                for container in reversed(self._sidecars):
                    await self._end(container)
        except TimeoutError:
            raise PodError(f"{self.name} was killed after {grace:g} s") from None
        seconds = time.monotonic() - began
        for container in (*self.containers, *self._sidecars):
            assert container.process is not None
            if container.process.returncode != 0:
                status = container.process.returncode
                raise PodError(f"{container} ended with {status}: {container.log}")
        await self.remove()
        return seconds

    async def _end(self, container: Container) -> None:
        await container.prepare_to_stop()
        await container.stop()
        container.stop_probes()

    async def remove(self) -> None:
        """Takes away whatever is left of it, as when its node is lost."""
        self.ending = self.gone = True
        self.readiness_changed()
        for container in (*self.containers, *self._sidecars):
            await container.kill()
        for path in self._mounted:
            _try("umount", "--lazy", str(path))
        # It would stay as long as the kernel waits for the ends of connections.
        _try("ip", "link", "delete", self._cable)
        _try("ip", "netns", "delete", self._namespace)

    def fail(self, problem: str) -> None:
        """Something went wrong for good."""
        self._problem = self._problem or problem
        self.readiness_changed()

    def readiness_changed(self) -> None:
        """Takes note of what its containers say."""
        all_containers = (*self.containers, *self._sidecars)
        self.ready = (
            not self.ending
            and bool(self.containers)
            and all(container.ready for container in all_containers)
        )
        self.node.update_names()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _unless_failed(self, waiting: Any) -> None:
        """Waits for something, or raises what went wrong."""
        if self._problem:
            waiting.close()
            raise PodError(self._problem)
        wanted = asyncio.ensure_future(waiting)
        changed = self._changed
        while not wanted.done():
            news = asyncio.ensure_future(changed.wait())
            await asyncio.wait({wanted, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            changed = self._changed
            if self._problem:
                wanted.cancel()
                raise PodError(self._problem)

    def _connect(self) -> None:
        """Makes its network: a namespace, and a cable to the node."""
        outside, name = self._cable, self._namespace
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", outside, "master", self.node.id, "up")
        for command in (
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", self.node.address),
        ):
            _run("ip", "-netns", name, *command)

    def _make_etc(self) -> None:
        etc = self.folder / "etc"
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        search = f"{_SEARCH} svc.cluster.local cluster.local"
        (etc / "resolv.conf").write_text(
            f"nameserver {self.node.address}\nsearch {search}\noptions ndots:5\n"
        )
        (etc / "passwd").write_text(
            f"root:x:0:0::/root:/bin/sh\nminmo:x:{USER}:{USER}::/tmp:/bin/sh\n"
        )

    def _make_volumes(self) -> None:
        volumes = list(self.spec.get("volumes", ()))
        volumes += [
            {"name": template["metadata"]["name"], "claimed": True}
            for template in self.workload["spec"].get("volumeClaimTemplates", ())
        ]
        for volume in volumes:
            self.volumes[volume["name"]] = self._volume(volume)

    def _volume(self, volume: Resource) -> Path:
        folder: Path = self.folder / "volumes" / volume["name"]
        match volume:
            case {"persistentVolumeClaim": {"claimName": claim}}:
                return self.node.claims[claim]
            case {"claimed": True}:
                folder = self.node.folder / "claimed" / self.name / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        match volume:
            case {"emptyDir": {"medium": "Memory", "sizeLimit": limit}}:
                size = limit.removesuffix("i").lower()
                _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
                self._mounted.append(folder)
            case {"projected": {"sources": sources}}:
                for source in sources:
                    self._write(folder, source)
            case {"configMap": _} | {"secret": _}:
                self._write(folder, volume)
        # As with fsGroup.
        shutil.chown(folder, "root", USER)
        folder.chmod(0o2775)
        return folder

    def _write(self, folder: Path, source: Resource) -> None:
        match source:
            case {"configMap": {"name": name}}:
                data = self.node.rendered.named("ConfigMap", name)["data"]
            case {"secret": secret}:
                data = self.node.secrets[secret.get("secretName", secret.get("name"))]
        for key, value in data.items():
            file = folder / key
            file.write_text(value)
            os.chown(file, 0, USER)
            file.chmod(0o440)


class Node:
    """A node: its network, its name server, its pods.

    Args:
        rendered: what is applied.
        secrets: the Secrets that the manifests leave to be made.
        folder: of its own; it gets the logs in the end.
    """

    def __init__(
        self, rendered: Rendered, secrets: Mapping[str, Mapping[str, str]], folder: Path
    ) -> None:
        self.rendered = rendered
        self.secrets = secrets
        self.folder = folder
        self.images = images()
        self.claims: dict[str, Path] = {}
        self.id = f"mm{uuid.uuid4().hex[:6]}"
        self.network = _free_network()
        self.address = f"{self.network}.1"
        self._pods: list[Pod] = []
        self._names = Names()
        self._numbers = iter(range(10, 250))

    @classmethod
    @asynccontextmanager
    async def running(
        cls, rendered: Rendered, secrets: Mapping[str, Mapping[str, str]], folder: Path
    ) -> AsyncIterator[Node]:
        """A node without pods; all of them end with it. Skips where there can be none."""
        check_machine()
        # In memory: who else writes to this machine's disk may keep a server waiting for seconds.
        memory = folder / "memory"
        memory.mkdir()
        node = cls(rendered, secrets, memory)
        async with AsyncExitStack() as stack:
            _run("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(memory))
            stack.callback(_try, "umount", "--lazy", str(memory))
            stack.callback(node._keep_logs, folder)
            # An address of its own: else it has that of a pod, a new one whenever pods change.
            _run("ip", "link", "add", node.id, "address", "02:00:00:00:07:01", "type", "bridge")
            stack.callback(_try, "ip", "link", "delete", node.id)
            _run("ip", "address", "add", f"{node.address}/24", "dev", node.id)
            _run("ip", "link", "set", node.id, "up")
            stack.enter_context(_served(node._names, node.address))
            node.claims["weights"] = stack.enter_context(node._weights())
            try:
                yield node
            finally:
                await asyncio.gather(*(pod.remove() for pod in node._pods))

    def pod(self, workload: str, ordinal: int = 0) -> Pod:
        """A new pod of a workload, which is to be started."""
        for item in self.rendered.workloads():
            if item["metadata"]["name"] == workload:
                pod = Pod(self, f"{workload}-{ordinal}", item, next(self._numbers))
                self._pods.append(pod)
                return pod
        raise KeyError(workload)

    def target(self, service: str, port: int) -> str:
        """A Service as gRPC finds it from outside the pods: all of its replicas."""
        return f"dns://{self.address}:53/{service}.{_SEARCH}:{port}"

    def update_names(self) -> None:
        """Tells the name server which pods a Service has now."""
        addresses: dict[str, list[str]] = {}
        for service in self.rendered.of_kind("Service"):
            name, spec = service["metadata"]["name"], service["spec"]
            there = [pod for pod in self._pods if pod.volumes and not pod.gone]
            chosen = [pod for pod in there if spec["selector"].items() <= pod.labels.items()]
            if not spec.get("publishNotReadyAddresses"):
                chosen = [pod for pod in chosen if pod.ready]
            addresses[f"{name}.{_SEARCH}"] = [pod.address for pod in chosen]
            for pod in chosen:
                if pod.workload["spec"].get("serviceName") == name:
                    addresses[f"{pod.name}.{name}.{_SEARCH}"] = [pod.address]
        self._names.addresses = addresses

    def _keep_logs(self, folder: Path) -> None:
        for log in self.folder.rglob("*.log"):
            shutil.copy(log, folder / f"{log.parent.name}-{log.name}")

    @contextlib.contextmanager
    def _weights(self) -> Iterator[Path]:
        """The claim of the weights: what this machine has of them, under a layer to write to."""
        folder = self.folder / "weights"
        layers = {name: self.folder / f"weights-{name}" for name in ("upper", "work")}
        for path in (folder, *layers.values()):
            path.mkdir()
        options = f"lowerdir={home.home()},upperdir={layers['upper']},workdir={layers['work']}"
        _run("mount", "-t", "overlay", "-o", options, "overlay", str(folder))
        try:
            # As with fsGroup; of files, those that are written to.
            for path in (*folder.rglob("*/"), *folder.glob("*.lock"), folder):
                os.chown(path, -1, USER)
                path.chmod(path.stat().st_mode | 0o2070 if path.is_dir() else 0o664)
            yield folder
        finally:
            _try("umount", "--lazy", str(folder))


def _free_network() -> str:
    """The first three numbers of addresses that nobody has on this machine."""
    shown = subprocess.run(
        ["ip", "-4", "-oneline", "address"], check=True, capture_output=True, text=True
    ).stdout
    numbers = random.sample(range(256), 256)
    return next(
        network
        for network in (f"{_NETWORK}.{number}" for number in numbers)
        if f"{network}." not in shown
    )


@contextlib.contextmanager
def _served(names: Names, address: str) -> Iterator[None]:
    """Names, in a thread of their own: some resolve them while all else of theirs waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="names")
    thread.start()
    try:
        endpoint = loop.create_datagram_endpoint(lambda: names, local_addr=(address, 53))
        future = asyncio.run_coroutine_threadsafe(endpoint, loop)
        transport, _ = future.result(_COMMAND_SECONDS)
        yield
        loop.call_soon_threadsafe(transport.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _user(pod: Resource) -> list[str]:
    """Becomes the pod's user, and gives up all that root may."""
    context = pod["securityContext"]
    return [
        *("setpriv", f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}"),
        f"--groups={context.get('fsGroup', context['runAsGroup'])}",
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    ]


async def _serves(address: str) -> bool:
    """What the kubelet's gRPC probe asks."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            f"/{SERVICE_NAME}/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest())
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _answers(url: str) -> bool:
    """What its HTTP probe asks; it checks no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, ssl=context, allow_redirects=False) as answer,
    ):
        return answer.status in _CODES
