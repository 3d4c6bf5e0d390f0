"""What is done to a stack while people talk with it: killed, drained, added."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from minmo.stack import Stack
from minmo.stack.replicas import SERVICES, kind_of, replica_names, service_named

Kind = Literal["kill", "drain", "add"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WORD = re.compile(r"(?P<kind>[a-z]+):(?P<process>[a-z][a-z_-]*?(?:-\d+)?)@(?P<at>[\d.]+)s?")
_OTHERS = ("triton", "redis")


@dataclass(frozen=True)
class Fault:
    """One thing that is done.

    Attributes:
        kind: ``kill`` ends the process at once (SIGKILL), ``drain`` asks it to end (SIGTERM); both
            are started again. ``add`` starts one more replica.
        process: name of the process, as in ``encoder`` or ``encoder-2``; for ``add``, the service.
        at_seconds: after the first session began.
    """

    kind: Kind
    process: str
    at_seconds: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.process}@{self.at_seconds:g}s"

    async def happen(self, stack: Stack, ready_seconds: float) -> str:
        """Does it; returns the process' name when it is ready again.

        Raises:
            StackError: there is no such process, or it was not ready in time.
        """
        if self.kind == "add":
            return await stack.add(self.process)
        if self.kind == "kill":
            await stack.kill(self.process)
        else:
            # It is started again when it has ended, which is as long as its calls need.
            await stack.kill(self.process, signal.SIGTERM)
        await stack.wait_ready(self.process, ready_seconds)
        return self.process


def parse_faults(text: str) -> list[Fault]:
    """Reads ``kill:encoder@10s,drain:orchestrator-2@20s,add:llm@30s``, in the order of time.

    Raises:
        ValueError: what is not understood, and what is.
    """
    found = []
    for word in text.split(","):
        match = _WORD.fullmatch(word.strip())
        kind = next((known for known in KINDS if match and match["kind"] == known), None)
        if match is None or kind is None:
            raise ValueError(
                f"{word.strip()!r}: give {'|'.join(KINDS)}:PROCESS@SECONDSs, as in kill:encoder@10s"
            )
        found.append(Fault(kind, _process(kind, match["process"]), _seconds(match["at"])))
    return sorted(found, key=lambda fault: fault.at_seconds)


def one_of_each(replicas: Mapping[str, int], seconds: float, *, gateway: bool) -> list[Fault]:
    """Every kind of fault for every service, spread over a time: its first replica is killed, its
    last one drained, and one is added.

    Args:
        replicas: of each service; one where nothing is said.
        seconds: until all is over.
        gateway: whether there is one.
    """
    services = [service for service in SERVICES if gateway or service != "gateway"]
    wanted: list[tuple[Kind, str]] = []
    for service in services:
        last = replica_names(service, replicas.get(service, 1))[-1]
        wanted += [("kill", service), ("drain", last), ("add", service)]
    step = seconds / (len(wanted) + 1)
    return [
        Fault(kind, process, round(step * place, 1))
        for place, (kind, process) in enumerate(wanted, start=1)
    ]


def _process(kind: Kind, name: str) -> str:
    base = kind_of(name)
    if kind == "add" and base != name:
        raise ValueError(f"add:{name}: name the service alone, as in add:{base}")
    if base in _OTHERS:
        if kind == "add":
            raise ValueError(f"add:{name}: only services have replicas to add")
        return name
    return service_named(base) + name[len(base) :]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text}s is no time") from None


def added(faults: Iterable[Fault]) -> dict[str, int]:
    """How many replicas of each service are added: they must be held back until then."""
    found: dict[str, int] = {}
    for fault in faults:
        if fault.kind == "add":
            found[fault.process] = found.get(fault.process, 0) + 1
    return found
