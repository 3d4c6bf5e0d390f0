"""Which processes a stack has: their command lines, environments, addresses and what they need."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from minmo.stack import ready, redis, shared_memory
from minmo.stack.config import StackConfig
from minmo.stack.mode import Mode, chosen
from minmo.stack.process import ProcessSpec
from minmo.stack.threads import available_cores, thread_budget, thread_variables
from minmo.stack.triton import triton_command
from minmo.weights import home
from minmo.weights.parts import preset_name

ServiceName = Literal["encoder", "voice_decoder", "llm", "orchestrator", "gateway"]

_LOOPBACK = "127.0.0.1"
# On few, busy cores PyTorch alone takes its time to load.
_SERVICE_READY_SECONDS = 120.0
_TRITON_READY_SECONDS = 120.0
# Of a slow disk, which weights of gigabytes come from.
_BYTES_PER_SECOND = 50e6
# Variables of who starts the stack that are about its public API: the services behind it must not
# take them for their own.
_PUBLIC_VARIABLES = (
    *("MINMO_TOKEN", "MINMO_TLS_", "MINMO_UPSTREAM_", "MINMO_READY_FILE"),
    *("MINMO_API_KEYS_FILE", "MINMO_JWT_", "MINMO_ALLOWED_ORIGINS"),
)
# What the gateway takes from who starts the stack: it is open to the world.
_GATEWAY_VARIABLES = ("MINMO_API_KEYS_FILE", "MINMO_JWT_", "MINMO_ALLOWED_ORIGINS")


@dataclass
class Plan:
    """The processes of a stack.

    Args:
        config: what it is to be.
        folder: its own folder, with ``ready/`` in it.
        reserve: gives a port of 127.0.0.1 that stays reserved as long as the stack lives.
        public: ``(port, address)`` of the public gRPC API.
        web: the same of the gateway; None has no gateway.

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
        self._plan_triton()
        preload = "embeddings" if self.mode == "aligned" else "words"
        self._plan_service("encoder", ["--preset", self._preset, "--preload", preload])
        sends = [] if self.mode == "aligned" else ["--no-hidden-states"]
        self._plan_service("voice_decoder", ["--preset", self._preset, *sends])
        self._plan_service(
            "llm",
            ["--preset", self._preset, "--triton-address", self.addresses["triton"]],
            needs=["triton"],
        )
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

    def _plan_triton(self) -> None:
        if self.config.triton_address is not None:
            self.addresses["triton"] = self.config.triton_address
            return
        grpc_port, http_port = self.reserve(), self.reserve()
        metrics_port = self.reserve() if self.config.metrics else -1
        threads = self._threads["triton"]
        command, environment = triton_command(
            grpc_port, http_port, metrics_port, preset=self._preset, threads=threads
        )
        prefix = shared_memory.prefix(self.folder.name)
        command.append(f"--backend-config=python,shm-region-prefix-name={prefix}")
        self.addresses["triton"] = f"{_LOOPBACK}:{grpc_port}"
        if self.config.metrics:
            self.metrics_urls["triton"] = f"http://{_LOOPBACK}:{metrics_port}/metrics"

        async def is_ready(_: int) -> bool:
            # Triton is ready when its models are.
            return await ready.http_status(http_port, "/v2/health/ready") == HTTPStatus.OK

        def tidy() -> None:
            shared_memory.remove(self.folder.name)

        self.specs.append(
            ProcessSpec(
                name="triton",
                command=command,
                ready=is_ready,
                environment=self._environment("triton", threads, environment),
                ready_seconds=_TRITON_READY_SECONDS + self._load_seconds,
                stop_seconds=5,
                tidy=tidy,
            )
        )

    def _plan_service(
        self, name: ServiceName, arguments: list[str], needs: list[str] | None = None
    ) -> None:
        port = self.reserve()
        self.addresses[name] = f"{_LOOPBACK}:{port}"
        self._add_service(name, ["--host", _LOOPBACK, "--port", str(port), *arguments], needs or [])

    def _plan_orchestrator(self) -> None:
        config = self.config
        port, self.addresses["orchestrator"] = self.public
        arguments = [
            *("--host", config.host, "--port", str(port), "--mode", self.mode),
            *("--encoder-address", self.addresses["encoder"]),
            *("--llm-address", self.addresses["llm"]),
            *("--voice-decoder-address", self.addresses["voice_decoder"]),
            *("--drain-seconds", "3"),
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
        started = {spec.name for spec in self.specs}
        self._add_service("orchestrator", arguments, sorted(started - {"triton"}), secrets)

    def _plan_gateway(self, port: int, address: str) -> None:
        config = self.config
        self.addresses["gateway"] = address
        arguments = [
            *("--host", config.host, "--port", str(port), "--drain-seconds", "2"),
            *("--orchestrator-address", self.addresses["orchestrator"]),
        ]
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
        self._add_service("gateway", arguments, ["orchestrator"], secrets)

    def _add_service(
        self,
        name: ServiceName,
        arguments: list[str],
        needs: list[str],
        secrets: dict[str, str] | None = None,
    ) -> None:
        threads = self._threads[name]
        metrics_port = self.reserve() if self.config.metrics else -1
        if self.config.metrics:
            self.metrics_urls[name] = f"http://{_LOOPBACK}:{metrics_port}/metrics"
        ready_file = self.folder / "ready" / f"{name}.json"
        command = [sys.executable, "-m", f"services.{name}", *arguments]
        command += ["--metrics-port", str(metrics_port), "--threads", str(threads)]
        command += ["--ready-file", str(ready_file)]
        if "--drain-seconds" not in command:
            command += ["--drain-seconds", "1"]
        self.specs.append(
            ProcessSpec(
                name=name,
                command=command,
                ready=ready.by_file(ready_file),
                environment=self._environment(name, threads) | (secrets or {}),
                needs=[need for need in needs if need in {spec.name for spec in self.specs}],
                ready_seconds=_SERVICE_READY_SECONDS + self._load_seconds,
                stop_seconds=5 if name in ("orchestrator", "gateway") else 3,
            )
        )

    def _environment(
        self, name: str, threads: int = 1, base: Mapping[str, str] = os.environ
    ) -> dict[str, str]:
        inherited = {
            key: value for key, value in base.items() if not key.startswith(_PUBLIC_VARIABLES)
        }
        return inherited | thread_variables(threads) | dict(self.config.variables.get(name, {}))


def _absolute(preset: str) -> str:
    """A preset's path as every process understands it, wherever it runs; names stay as they are."""
    return str(Path(preset).expanduser().absolute()) if preset.endswith(".toml") else preset


def _load_seconds(preset: str) -> float:
    """Longest time that the preset's weights need to come from the disk."""
    folder = home.module_folder(preset_name(preset), "")
    sizes = (path.stat().st_size for path in folder.rglob("*.safetensors"))
    return sum(sizes) / _BYTES_PER_SECOND
