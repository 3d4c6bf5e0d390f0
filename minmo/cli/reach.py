"""The server that a command talks with: a given one, the one that runs here, or one it starts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from minmo.cli.show import StackProgress, stderr
from minmo.client.errors import ClientError
from minmo.client.target import Target
from minmo.stack import Stack, StackConfig
from minmo.stack.descriptor import Descriptor, running_stack
from minmo.stack.signals import run_until_signal

Result = TypeVar("Result")


@dataclass(frozen=True)
class Server:
    """A server that is there.

    Attributes:
        target: how to reach it.
        descriptor: what it is made of, if it runs on this machine.
        stack: its processes, if this command has started them.
    """

    target: Target
    descriptor: Descriptor | None = None
    stack: Stack | None = None


@dataclass(frozen=True)
class Reach:
    """Which server a command wants.

    Attributes:
        address: the server; None takes the one that runs here, or starts one.
        token: its API token.
        tls_ca: PEM file of the CA that signed its certificate.
        config: the stack to start if none runs; None starts none.
        quiet: says nothing about the start.
    """

    address: str | None = None
    token: str | None = field(default=None, repr=False)
    tls_ca: Path | None = None
    config: StackConfig | None = None
    quiet: bool = False

    def run(self, work: Callable[[Server], Awaitable[Result]]) -> Result:
        """Runs `work` with the server; Ctrl-C ends it, and what was started for it.

        Raises:
            StackError, WeightsError: a server could not be started.
            ClientError: there is none, and none is to be started.
            KeyboardInterrupt: a signal ended it.
        """
        if self.address is not None:
            return _run(work, Server(Target(self.address, self.token, self.tls_ca)))
        found = asyncio.run(running_stack(tls_ca=self.tls_ca))
        if found is not None:
            target = Target(found.address, self.token, self.tls_ca if found.tls else None)
            return _run(work, Server(target, found))
        if self.config is None:
            raise ClientError(
                "no server runs here: start one with `minmo serve`, or give its --address"
            )

        async def with_stack(stack: Stack) -> Result:
            target = Target(stack.targets["orchestrator"])
            return await work(Server(target, stack.describe(), stack))

        return run_with_stack(self.config, with_stack, quiet=self.quiet)


def run_with_stack(
    config: StackConfig, work: Callable[[Stack], Awaitable[Result]], *, quiet: bool = False
) -> Result:
    """Prepares the weights, starts a stack, runs `work` with it, and stops it.

    The first Ctrl-C ends `work` and stops the stack in order, the second kills it.

    Raises:
        StackError, WeightsError: it could not be started.
        KeyboardInterrupt: a signal ended it.
    """
    if config.needs_weights:
        ensure_weights(config.preset, quiet=quiet)
    return asyncio.run(_start_and_run(config, work, quiet))


async def _start_and_run(
    config: StackConfig, work: Callable[[Stack], Awaitable[Result]], quiet: bool
) -> Result:
    progress = StackProgress(quiet=quiet)
    stack = Stack(config, listener=progress.event)

    async def start_and_work() -> Result:
        began = time.monotonic()
        try:
            with progress:
                await stack.start()
            if not quiet:
                seconds = time.monotonic() - began
                stderr().print(f"{len(stack.names)} processes are ready after {seconds:.1f} s")
            return await work(stack)
        finally:
            await stack.stop()

    return await run_until_signal(start_and_work(), stack.kill_now)


def _run(work: Callable[[Server], Awaitable[Result]], server: Server) -> Result:
    async def run() -> Result:
        return await work(server)

    return asyncio.run(run_until_signal(run(), lambda: None))


def ensure_weights(preset: str, *, quiet: bool = False) -> None:
    """Fetches and prepares what a preset needs, showing how far it is.

    Raises:
        WeightsError: it cannot be had; names all that somebody has to import first.
    """
    from minmo.weights import NoProgress, ensure, shown_on
    from minmo.weights.needs import check_imported, voice_commands
    from minmo.weights.parts import PRESETS

    check_imported(preset)
    if quiet:
        ensure(preset, NoProgress())
        return
    with shown_on(sys.stderr) as progress:
        ensure(preset, progress)
    if preset not in PRESETS and (commands := voice_commands(preset)):
        lines = "\n  ".join(commands)
        note = f"SVOX Pico speaks: the preset's own voice is not complete. The rest:\n  {lines}"
        stderr().print(note, markup=False)
