"""What a stack on this machine is to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minmo.stack.mode import WantedMode
from minmo.weights import home

DEFAULT_PORT = 7100
DEFAULT_WEB_PORT = 8080
DEFAULT_INSTANCE = "stack"


@dataclass(frozen=True)
class StackConfig:
    """What a stack is to be.

    Attributes:
        preset: preset whose modules are used; its weights are there (`minmo.weights.ensure`).
        mode: ``cascade``, ``aligned``, or ``auto`` (`minmo.stack.mode`).
        host: address that the public API listens on; everything else stays on 127.0.0.1.
        port: port of the public API; 0 takes a free one, None takes 7100 or else a free one.
        gateway: whether there is a gateway, which serves the page and the Realtime protocol.
        web_port: its port; 0 takes a free one, None takes 8080 or else a free one.
        metrics: whether the processes export Prometheus metrics.
        prometheus: file that is to say where they are, while the stack runs (`minmo.stack.scrape`).
        redis_url: an external Redis; None starts one, whose data stay in the folder.
        triton_address: gRPC address of an external Triton; None starts one.
        token: API token that the public API wants.
        tls_cert: PEM certificate chain of the public API.
        tls_key: PEM private key of it.
        tls_client_ca: PEM CA that must have signed the callers' certificates.
        tls_ca: PEM CA of `tls_cert`, for the gateway, which is a caller too.
        folder: where the run and data folders are.
        variables: settings of single services, by their name, as environment variables.
        cores: cores to plan for; those that this process may use if None.
        replicas: processes of a service, by its name; one where nothing is said. A replica of the
            llm has a Triton of its own, unless there is an external one.
        held_back: further replicas, which all clients know of and which `Stack.add` starts.
        drain_seconds: time that running calls have to end after SIGTERM, in every service; None
            takes few, as suits a stack that one person stops.
        stand_ins: what is run in the place of a service, by its name: arguments of Python, as in
            ``("-m", "package.module")``, to which the service's own flags are added. Where the llm
            has one there is no Triton.
    """

    preset: str = "mini"
    mode: WantedMode = "auto"
    host: str = "127.0.0.1"
    port: int | None = None
    gateway: bool = False
    web_port: int | None = None
    metrics: bool = True
    prometheus: Path | None = None
    redis_url: str | None = None
    triton_address: str | None = None
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_ca: Path | None = None
    folder: Path = field(default_factory=home.home)
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cores: int | None = None
    replicas: Mapping[str, int] = field(default_factory=dict)
    held_back: Mapping[str, int] = field(default_factory=dict)
    drain_seconds: float | None = None
    stand_ins: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def needs_weights(self) -> bool:
        """Whether a model is loaded: not every service that has one has a stand-in."""
        return not {"encoder", "llm", "voice_decoder"} <= self.stand_ins.keys()

    @property
    def instance(self) -> str:
        """Names its descriptor, lock and data: a stack on a port of its own stands apart."""
        if self.port in (None, 0, DEFAULT_PORT):
            return DEFAULT_INSTANCE
        return f"{DEFAULT_INSTANCE}-{self.port}"

    @property
    def run_folder(self) -> Path:
        """Folder of descriptors, locks and logs."""
        return self.folder / "run"

    @property
    def descriptor_path(self) -> Path:
        """File of its descriptor."""
        return self.run_folder / f"{self.instance}.json"

    @property
    def lock_path(self) -> Path:
        """File that its supervisor holds a lock on."""
        return self.run_folder / f"{self.instance}.lock"

    @property
    def redis_folder(self) -> Path:
        """Folder of the embedded Redis' data."""
        suffix = self.instance.removeprefix(DEFAULT_INSTANCE)
        return self.folder / "data" / f"redis{suffix}"
