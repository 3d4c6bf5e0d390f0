"""A program that supervises one dummy: `python supervising_parent.py FOLDER [dummy's options]`."""

import sys
from pathlib import Path

from minmo.stack import ready
from minmo.stack.process import ProcessSpec
from minmo.stack.signals import run_until_signal
from minmo.stack.supervisor import Supervisor

folder = Path(sys.argv[1])
dummy = Path(__file__).with_name("dummy_service.py")
ready_file = folder / "one.json"
command = [sys.executable, "-S", str(dummy), str(ready_file), *sys.argv[2:]]


async def main() -> None:
    spec = ProcessSpec("one", command, ready.by_file(ready_file), stop_seconds=60)
    supervisor = Supervisor([spec], folder)

    async def serve() -> None:
        try:
            await supervisor.start()
            print("ready", flush=True)
            await supervisor.failed()
        finally:
            print("stopping", flush=True)
            await supervisor.stop(60)

    await run_until_signal(serve(), supervisor.kill_now)


if __name__ == "__main__":
    import asyncio

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
