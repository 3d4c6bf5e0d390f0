"""What each image starts, started as its container would: see `tests.containers`."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from minmo import weights
from minmo.weights import home, triton
from tests.containers import Image, assembled, contained, need_root, read

START_SECONDS = 60.0
CHECK_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass
class Container:
    """A process that runs as in a container of an image.

    Attributes:
        image: what it was made of.
        process: the process.
        folder: its environment, and its file system.
        variables: what it was told.
        lines: what it says, as it says it; None when it has ended.
    """

    image: Image
    process: subprocess.Popen[str]
    folder: Path
    variables: dict[str, str]
    lines: queue.Queue[str | None]

    def until(self, text: str) -> None:
        """Waits for a line with a text in it."""
        said: list[str] = []
        deadline = time.monotonic() + START_SECONDS
        with contextlib.suppress(queue.Empty):
            while line := self.lines.get(timeout=max(0.0, deadline - time.monotonic())):
                said.append(line)
                if text in line:
                    return
        raise AssertionError(f"it did not say {text!r}:\n" + "".join(said[-30:]))

    def run(self, *command: str) -> tuple[int, str]:
        """The exit status of another command in the container, and what it says."""
        root = self.folder / "other"
        root.mkdir(exist_ok=True)
        with contained(
            self.image,
            self.folder / "minmo",
            root,
            command,
            self.variables,
            beside=self.process.pid,
        ) as process:
            said, _ = process.communicate(timeout=CHECK_SECONDS)
        return process.returncode, said

    def health(self) -> tuple[int, str]:
        """What the image's own check says."""
        return self.run(*self.image.health)

    def stop(self) -> int:
        """Asks it to end, as an engine does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def started(
    name: str,
    folder: Path,
    variables: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    shown: dict[str, Path] | None = None,
) -> Iterator[Container]:
    """What an image starts; `arguments` in the place of its own, `shown` as in `contained`."""
    need_root()
    weights.ensure("mini")
    image = read(name)
    root = folder / "root"
    root.mkdir()
    environment = assembled(name, folder / "minmo")
    command = [*image.entrypoint, *(arguments or image.command)]
    told = {"OMP_NUM_THREADS": "1", **(variables or {})}
    with contained(image, environment, root, command, told, shown=shown) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines))
        reader.start()
        try:
            yield Container(image, process, folder, told, lines)
        finally:
            process.kill()
            reader.join(STOP_SECONDS)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("encoder", {"MINMO_PRELOAD": "words"}),
        ("voice-decoder", {"MINMO_HIDDEN_STATES": "false"}),
    ],
)
def test_a_service_is_healthy_with_the_packages_of_its_image_alone(
    name: str, variables: dict[str, str], tmp_path: Path
) -> None:
    with started(name, tmp_path, variables) as container:
        container.until('"event": "ready"')
        assert container.health() == (0, "")
        assert container.stop() == 0


@pytest.mark.parametrize(
    ("name", "missing"), [("llm", "triton"), ("orchestrator", "redis"), ("gateway", "orchestrator")]
)
def test_a_service_whose_other_one_is_away_starts_without_pytorch_and_says_what_it_lacks(
    name: str, missing: str, tmp_path: Path
) -> None:
    with started(name, tmp_path) as container:
        container.until('"event": "not ready"')
        status, said = container.health()
        assert status == 1
        assert said.startswith("503 ")
        assert missing in said.lower()
        assert container.run("python", "-c", "import torch")[0] == 1
        assert container.stop() == 0


def test_triton_serves_the_llm_as_a_user_without_rights(tmp_path: Path) -> None:
    # In the image the loader knows Python's library.
    variables = {"LD_LIBRARY_PATH": triton.library_path(), "MINMO_LLM_PRESET": "mini"}
    shown = {"/opt/triton": home.triton_folder()}
    # Its log alone says when it is ready.
    arguments = ("--exit-timeout-secs=2", "--log-info=true")
    with started("triton-cpu", tmp_path, variables, arguments, shown) as container:
        container.until("Started HTTPService")
        assert container.health() == (0, "")
        assert container.stop() == 0


def test_a_container_writes_to_tmp_and_nowhere_else(tmp_path: Path) -> None:
    program = (
        "import os, pathlib\n"
        "for folder in ('/tmp', '/', '/opt/minmo', '/var/lib/minmo'):\n"
        "    try:\n"
        "        pathlib.Path(folder, 'x').write_text('x')\n"
        "        print(folder, os.getuid(), os.getgid(), os.getgroups())\n"
        "    except OSError:\n"
        "        pass\n"
    )
    need_root()
    root = tmp_path / "root"
    root.mkdir()
    environment = assembled("gateway", tmp_path / "minmo")
    with contained(read("gateway"), environment, root, ["python", "-c", program], {}) as process:
        said, _ = process.communicate(timeout=CHECK_SECONDS)
    assert said == "/tmp 10001 10001 []\n"
