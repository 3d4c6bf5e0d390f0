"""Several processes of one service: what they are called, and where its clients find them all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from minmo.stack.errors import StackError

ServiceName = Literal["encoder", "voice_decoder", "llm", "orchestrator", "gateway"]
SERVICES: tuple[ServiceName, ...] = get_args(ServiceName)

MAX_REPLICAS = 64
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}:\d{1,5}")


def parse_replicas(text: str) -> dict[str, int]:
    """Reads ``encoder=2,llm=2``, or ``all=2`` for all services.

    Raises:
        ValueError: there is no such service, or the number is not one of 1 to 64.
    """
    found: dict[str, int] = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        services = SERVICES if name == "all" else (service_named(name),)
        if not (number.isdecimal() and 1 <= int(number) <= MAX_REPLICAS):
            raise ValueError(f"{word.strip()!r}: give SERVICE=NUMBER, from 1 to {MAX_REPLICAS}")
        for service in services:
            if service in found:
                raise ValueError(f"{service} is named twice")
            found[service] = int(number)
    return found


def service_named(name: str) -> ServiceName:
    """The service of this name, written with ``_`` or ``-``. Raises ValueError if there is none."""
    for service in SERVICES:
        if name.replace("-", "_") == service:
            return service
    raise ValueError(f"there is no service {name!r}; there are: {', '.join(SERVICES)}")


def replica_names(kind: str, count: int) -> list[str]:
    """Names of the processes of a kind: ``llm``, ``llm-2``, ``llm-3``."""
    return [kind, *(f"{kind}-{number}" for number in range(2, count + 1))]


def kind_of(process: str) -> str:
    """What a process is a replica of: the reverse of `replica_names`."""
    return process.rpartition("-")[0] if re.search(r"-\d+$", process) else process


def count_of(
    service: ServiceName, replicas: Mapping[str, int], held_back: Mapping[str, int]
) -> tuple[int, int]:
    """How many replicas a service has from the start, and how many with those held back."""
    first = replicas.get(service, 1)
    return first, first + held_back.get(service, 0)


def target_of(addresses: Sequence[str]) -> str:
    """A gRPC target that has all of a service's replicas: a client balances between them.

    Args:
        addresses: ``host:port`` of each.

    Raises:
        StackError: there are several, and one is not an IPv4 address, as gRPC's lists want it.
    """
    if len(addresses) == 1:
        return addresses[0]
    for address in addresses:
        if not _IPV4.fullmatch(address):
            raise StackError(
                f"replicas at {address}: a list of addresses takes IPv4 addresses only; "
                "give an IPv4 address as --host"
            )
    return f"ipv4:{','.join(addresses)}"
