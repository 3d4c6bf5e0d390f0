"""Which processes a stack has: their command lines, environments, addresses and what they need."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from minmo.stack import ready, redis, shared_memory
from minmo.stack.config import StackConfig
from minmo.stack.errors import StackError
from minmo.stack.mode import Mode, chosen
from minmo.stack.process import ProcessSpec
from minmo.stack.replicas import ServiceName, count_of, kind_of, replica_names, target_of
from minmo.stack.threads import available_cores, thread_budget, thread_variables
from minmo.stack.triton import triton_command
from minmo.weights import home
from minmo.weights.parts import preset_name

_LOOPBACK = "127.0.0.1"
# On few, busy cores PyTorch alone takes its time to load.
_SERVICE_READY_SECONDS = 120.0
_TRITON_READY_SECONDS = 120.0
# Few, for a stack that one person stops.
_DRAIN_SECONDS: dict[ServiceName, int] = {"orchestrator": 3, "gateway": 2}
_OTHERS_DRAIN_SECONDS = 1
# Of a slow disk, which weights of gigabytes come from.
_BYTES_PER_SECOND = 50e6
# Variables of who starts the stack that are about its public API: the services behind it must not
# take them for their own.
_PUBLIC_VARIABLES = (
    *("MINMO_TOKEN", "MINMO_TLS_", "MINMO_UPSTREAM_", "MINMO_READY_FILE"),
    *("MINMO_API_KEYS_FILE", "MINMO_JWT_", "MINMO_ALLOWED_ORIGINS"),
)
# Who starts a stack is told at once that weights cannot be used.
_OWN_VARIABLES = {"MINMO_WAIT_FOR_WEIGHTS": "false"}
# What the gateway takes from who starts the stack: it is open to the world.
_GATEWAY_VARIABLES = ("MINMO_API_KEYS_FILE", "MINMO_JWT_", "MINMO_ALLOWED_ORIGINS")


@dataclass
class Plan:
    """The processes of a stack.

    Args:
        config: what it is to be.
        folder: its own folder, with ``ready/`` in it.
        reserve: gives a port of 127.0.0.1 that stays reserved as long as the stack lives.
        public: ``(port, address)`` of the public gRPC API, of its first replica if it has several.
        web: the same of the gateway; None has no gateway.

    Attributes:
        addresses: ``host:port`` of each process, by its name.
        targets: where clients find a service: its address, or a gRPC list of its replicas'.

    Raises:
        StackError: a part is missing on this machine.
        WeightsError: there is no such preset, or what its mode needs is not here.
    """

    config: StackConfig
    folder: Path
    reserve: Callable[[], int]
    public: tuple[int, str]
    web: tuple[int, str] | None = None
    specs: list[ProcessSpec] = field(default_factory=list, init=False)
    addresses: dict[str, str] = field(default_factory=dict, init=False)
    targets: dict[str, str] = field(default_factory=dict, init=False)
    metrics_urls: dict[str, str] = field(default_factory=dict, init=False)
    redis_url: str = field(default="", init=False)
    mode: Mode = field(default="cascade", init=False)

    def __post_init__(self) -> None:
        self.mode = chosen(self.config.mode, self.config.preset)
        self._preset = _absolute(self.config.preset)
        self._load_seconds = _load_seconds(self.config.preset)
        cores = self.config.cores or available_cores()
        self._threads = thread_budget(cores)
        self._plan_redis()
        preload = "embeddings" if self.mode == "aligned" else "words"
        self._plan_service("encoder", ["--preset", self._preset, "--preload", preload])
        self._plan_service("voice_decoder", ["--preset", self._preset])
        self._plan_llm()
        self._plan_orchestrator()
        if self.web is not None:
            self._plan_gateway(*self.web)

    def _plan_redis(self) -> None:
        if self.config.redis_url is not None:
            self.redis_url = self.config.redis_url
            return
        port = self.reserve()
        self.addresses["redis"] = f"{_LOOPBACK}:{port}"
        self.redis_url = f"redis://{_LOOPBACK}:{port}/0"

        async def answers(_: int) -> bool:
            return await redis.answers(port)

        self.specs.append(
            ProcessSpec(
                name="redis",
                command=redis.command(port, self.config.redis_folder),
                ready=answers,
                environment=self._environment("redis"),
                stop_seconds=3,
            )
        )

    def _plan_llm(self) -> None:
        """Fronts of the LLM, each with a Triton of its own, so that its sessions have one cache."""
        external = self.config.triton_address
        for name, held_back in self._replicas("llm"):
            arguments, needs = ["--preset", self._preset], []
            if "llm" not in self.config.stand_ins:
                triton = "triton" if external is not None else name.replace("llm", "triton")
                if external is not None:
                    self.addresses[triton] = external
                else:
                    self._plan_triton(triton, held_back=held_back)
                    needs = [triton]
                arguments += ["--triton-address", self.addresses[triton]]
            self._plan_replica("llm", name, arguments, needs, held_back=held_back)
        self._set_target("llm")

    def _plan_triton(self, name: str, *, held_back: bool) -> None:
        grpc_port, http_port = self.reserve(), self.reserve()
        metrics_port = self.reserve() if self.config.metrics else -1
        threads = self._threads["triton"]
        command, environment = triton_command(
            grpc_port, http_port, metrics_port, preset=self._preset, threads=threads
        )
        prefix = shared_memory.prefix(self.folder.name, name)
        command.append(f"--backend-config=python,shm-region-prefix-name={prefix}")
        self.addresses[name] = f"{_LOOPBACK}:{grpc_port}"
        if self.config.metrics:
            self.metrics_urls[name] = f"http://{_LOOPBACK}:{metrics_port}/metrics"

        async def is_ready(_: int) -> bool:
            # Triton is ready when its models are.
            return await ready.http_status(http_port, "/v2/health/ready") == HTTPStatus.OK

        def tidy() -> None:
            shared_memory.remove(self.folder.name, name)

        self.specs.append(
            ProcessSpec(
                name=name,
                command=command,
                ready=is_ready,
                environment=self._environment(name, threads, environment),
                ready_seconds=_TRITON_READY_SECONDS + self._load_seconds,
                stop_seconds=5,
                tidy=tidy,
                held_back=held_back,
            )
        )

    def _plan_service(self, service: ServiceName, arguments: list[str]) -> None:
        for name, held_back in self._replicas(service):
            self._plan_replica(service, name, arguments, [], held_back=held_back)
        self._set_target(service)

    def _plan_replica(
        self,
        service: ServiceName,
        name: str,
        arguments: list[str],
        needs: list[str],
        *,
        held_back: bool,
    ) -> None:
        port = self.reserve()
        self.addresses[name] = f"{_LOOPBACK}:{port}"
        own = ["--host", _LOOPBACK, "--port", str(port), *arguments]
        self._add_service(service, name, own, needs, held_back=held_back)

    def _plan_orchestrator(self) -> None:
        config = self.config
        arguments = [
            *("--mode", self.mode),
            *("--encoder-address", self.targets["encoder"]),
            *("--llm-address", self.targets["llm"]),
            *("--voice-decoder-address", self.targets["voice_decoder"]),
        ]
        for flag, path in (
            ("--tls-cert", config.tls_cert),
            ("--tls-key", config.tls_key),
            ("--tls-client-ca", config.tls_client_ca),
        ):
            if path is not None:
                arguments += [flag, str(path)]
        # Secrets go by the environment: command lines are for all users of a machine to see.
        secrets = {"MINMO_REDIS_URL": self.redis_url}
        if config.token is not None:
            secrets["MINMO_TOKEN"] = config.token
        needs = self._started("redis", "encoder", "voice_decoder", "llm")
        self._plan_public("orchestrator", self.public, arguments, needs, secrets)
        if config.tls_cert is not None and self.targets["orchestrator"].startswith("ipv4:"):
            raise StackError(
                "replicas of the orchestrator with TLS: no certificate is for a list of "
                "addresses; leave one of the two out"
            )

    def _plan_gateway(self, port: int, address: str) -> None:
        config = self.config
        arguments = ["--orchestrator-address", self.targets["orchestrator"]]
        for flag, path in (
            ("--tls-cert", config.tls_cert),
            ("--tls-key", config.tls_key),
            ("--upstream-ca", config.tls_ca),
        ):
            if path is not None:
                arguments += [flag, str(path)]
        # Clients show the API token here too; it is passed on.
        secrets = {
            key: value for key, value in os.environ.items() if key.startswith(_GATEWAY_VARIABLES)
        }
        if config.token is not None:
            secrets["MINMO_TOKEN"] = config.token
        needs = self._started("orchestrator")
        self._plan_public("gateway", (port, address), arguments, needs, secrets)

    def _plan_public(
        self,
        service: ServiceName,
        first: tuple[int, str],
        arguments: list[str],
        needs: list[str],
        secrets: dict[str, str],
    ) -> None:
        """A service that the world may reach; replicas behind the first have ports of their own."""
        host = first[1].rpartition(":")[0]
        for name, held_back in self._replicas(service):
            port, address = first
            if name != service:
                port = self.reserve()
                address = f"{host}:{port}"
            self.addresses[name] = address
            own = ["--host", self.config.host, "--port", str(port), *arguments]
            self._add_service(service, name, own, needs, secrets, held_back=held_back)
        self._set_target(service)

    def _replicas(self, service: ServiceName) -> list[tuple[str, bool]]:
        """Names of a service's processes, and whether they are held back."""
        first, count = count_of(service, self.config.replicas, self.config.held_back)
        return [(name, at >= first) for at, name in enumerate(replica_names(service, count))]

    def _set_target(self, service: ServiceName) -> None:
        self.targets[service] = target_of(
            [self.addresses[name] for name, _ in self._replicas(service)]
        )

    def _started(self, *kinds: str) -> list[str]:
        """Names of the processes of some kinds that start with the stack."""
        return sorted(
            spec.name for spec in self.specs if kind_of(spec.name) in kinds and not spec.held_back
        )

    def _add_service(
        self,
        service: ServiceName,
        name: str,
        arguments: list[str],
        needs: list[str],
        secrets: dict[str, str] | None = None,
        *,
        held_back: bool,
    ) -> None:
        threads = self._threads[service]
        metrics_port = self.reserve() if self.config.metrics else -1
        if self.config.metrics:
            self.metrics_urls[name] = f"http://{_LOOPBACK}:{metrics_port}/metrics"
        ready_file = self.folder / "ready" / f"{name}.json"
        drain_seconds = self.config.drain_seconds
        if drain_seconds is None:
            drain_seconds = _DRAIN_SECONDS.get(service, _OTHERS_DRAIN_SECONDS)
        run = self.config.stand_ins.get(service, ("-m", f"services.{service}"))
        command = [sys.executable, *run, *arguments]
        command += ["--metrics-port", str(metrics_port), "--threads", str(threads)]
        command += ["--ready-file", str(ready_file), "--drain-seconds", f"{drain_seconds:g}"]
        self.specs.append(
            ProcessSpec(
                name=name,
                command=command,
                ready=ready.by_file(ready_file),
                environment=self._environment(name, threads) | (secrets or {}),
                needs=needs,
                ready_seconds=_SERVICE_READY_SECONDS + self._load_seconds,
                stop_seconds=5 if service in ("orchestrator", "gateway") else 3,
                held_back=held_back,
            )
        )

    def _environment(
        self, name: str, threads: int = 1, base: Mapping[str, str] = os.environ
    ) -> dict[str, str]:
        inherited = {
            key: value for key, value in base.items() if not key.startswith(_PUBLIC_VARIABLES)
        }
        chosen = self.config.variables.get(kind_of(name), {})
        return inherited | thread_variables(threads) | _OWN_VARIABLES | dict(chosen)


def _absolute(preset: str) -> str:
    """A preset's path as every process understands it, wherever it runs; names stay as they are."""
    return str(Path(preset).expanduser().absolute()) if preset.endswith(".toml") else preset


def _load_seconds(preset: str) -> float:
    """Longest time that the preset's weights need to come from the disk."""
    folder = home.module_folder(preset_name(preset), "")
    sizes = (path.stat().st_size for path in folder.rglob("*.safetensors"))
    return sum(sizes) / _BYTES_PER_SECOND
