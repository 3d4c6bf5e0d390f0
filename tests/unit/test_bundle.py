"""Bundles: parts of limited size, unpacked by the standard library, run and brought home."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from minmo.cli import data as data_cli
from minmo.cli import eval as eval_cli
from minmo.cli import train as train_cli
from minmo.training.bundle import plan as plans
from minmo.training.bundle import results, run, start, unpack, wheels
from minmo.training.bundle.code import code
from minmo.training.bundle.errors import BundleError
from minmo.training.bundle.make import Contents, make, preset_there
from minmo.training.bundle.parts import Entry, Part, write_parts
from minmo.training.bundle.plan import Plan, Step
from minmo.training.bundle.speaking import Folders, speaking
from minmo.training.bundle.weights import weights
from minmo.weights.modules import load_module, random_module, write_module
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_speaking import make_place, name_tokens, spelled_aloud
from tests.unit.tiny_training import write_shard

_APPS = {"data": data_cli.app, "train": train_cli.app, "eval": eval_cli.app}
_CHUNK = 1 << 12
_PART = 120_000


def _random(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def _entries(folder: Path) -> list[Entry]:
    noise, text = folder / "noise", folder / "text"
    noise.write_bytes(_random(230_000))
    text.write_bytes(b"the same words again and again\n" * 5_000)
    return [
        Entry("run.sh", b"#!/bin/sh\n", executable=True),
        Entry("deep/er/noise.bin", noise),
        Entry("text.txt", text),
        Entry("empty", b""),
    ]


def _written(folder: Path, entries: list[Entry], part_bytes: int = _PART) -> list[Part]:
    return write_parts(entries, folder, part_bytes=part_bytes, about={}, chunk_bytes=_CHUNK)


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """A bundle of three parts."""
    (tmp_path / "in").mkdir()
    made = _written(tmp_path / "parts", _entries(tmp_path / "in"))
    assert len(made) == 3
    return made


def test_parts_stay_within_their_size_and_unpack_to_what_went_in(
    tmp_path: Path, parts: list[Part]
) -> None:
    assert all(part.path.stat().st_size == part.size <= _PART for part in parts)
    into = tmp_path / "out"
    # As a user does it, with nothing but the standard library and no site packages.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(parts[0].path), str(into)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (into / "deep/er/noise.bin").read_bytes() == _random(230_000)
    assert (into / "text.txt").read_bytes() == (tmp_path / "in/text").read_bytes()
    assert (into / "empty").read_bytes() == b""
    assert os.access(into / "run.sh", os.X_OK)
    assert not os.access(into / "text.txt", os.X_OK)
    assert not list(into.rglob("*.part"))


def test_parts_are_full(parts: list[Part]) -> None:
    assert parts[1].size > 0.9 * _PART


def test_the_same_files_make_the_same_parts(tmp_path: Path, parts: list[Part]) -> None:
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1, 1))
    again = _written(tmp_path / "again", _entries(tmp_path / "in"))
    assert [part.sha256 for part in again] == [part.sha256 for part in parts]


def test_what_was_compressed_before_is_used_unless_it_is_damaged(
    tmp_path: Path, parts: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls = tmp_path / "cache", []
    compress = lzma.compress
    monkeypatch.setattr(lzma, "compress", lambda *a, **k: calls.append(1) or compress(*a, **k))

    def again() -> list[str]:
        calls.clear()
        made = write_parts(
            _entries(tmp_path / "in"),
            tmp_path / "parts",
            part_bytes=_PART,
            about={},
            chunk_bytes=_CHUNK,
            cache=cache,
        )
        return [part.sha256 for part in made]

    wanted = [part.sha256 for part in parts]
    assert again() == wanted
    kept = list(cache.iterdir())
    assert kept
    assert again() == wanted
    assert not calls
    kept[0].write_bytes(b"damaged")
    assert again() == wanted
    assert len(calls) == 1


def test_the_checksums_are_those_of_sha256sum(parts: list[Part]) -> None:
    folder = parts[0].path.parent
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256(part.path.read_bytes()).hexdigest()}  {part.path.name}" for part in parts
    ]


def test_unpacking_again_leaves_what_is_there_and_mends_what_is_not(
    tmp_path: Path, parts: list[Part]
) -> None:
    first, into = parts[0].path, tmp_path / "out"
    assert unpack.unpack(first, into) == 4
    assert unpack.unpack(first, into) == 0
    noise = into / "deep/er/noise.bin"
    noise.write_bytes(b"x" + noise.read_bytes()[1:])
    assert unpack.unpack(first, into) == 1
    assert noise.read_bytes() == _random(230_000)


def test_every_missing_and_damaged_part_is_named_and_nothing_is_written(
    tmp_path: Path, parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (part.path for part in parts)
    content = bytearray(second.read_bytes())
    content[1000] ^= 1
    second.write_bytes(content)
    third.unlink()
    assert unpack.main([str(tmp_path / "out")], first) == 1
    said = capsys.readouterr().err
    assert f"damaged: {second.name}" in said
    assert f"missing: {third.name}" in said
    assert not (tmp_path / "out").exists()
    assert unpack.main(["--check"], first) == 1


def test_a_cut_part_says_how_much_of_it_is_there(tmp_path: Path, parts: list[Part]) -> None:
    second = parts[1].path
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(unpack.UnpackError, match=rf"has {parts[1].size - 10} of {parts[1].size}"):
        unpack.unpack(parts[0].path, tmp_path / "out")


def test_a_damaged_first_part_is_noticed(tmp_path: Path, parts: list[Part]) -> None:
    first = parts[0].path
    content = bytearray(first.read_bytes())
    content[2_000] ^= 1
    first.write_bytes(content)
    with pytest.raises(unpack.UnpackError, match=f"damaged: {first.name}"):
        unpack.unpack(first, tmp_path / "out")
    first.write_bytes(bytes(content[:-100]))
    with pytest.raises(unpack.UnpackError, match=f"{first.name} is damaged"):
        unpack.unpack(first, tmp_path / "out")


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    (part,) = _written(tmp_path / "parts", [Entry("../outside", b"content")])
    with pytest.raises(unpack.UnpackError, match="outside"):
        unpack.unpack(part.path, tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def test_parts_too_small_for_the_index_and_doubled_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="too small"):
        _written(tmp_path / "parts", [Entry("a", b"a")], part_bytes=10_000)
    with pytest.raises(BundleError, match="'a'"):
        _written(tmp_path / "parts", [Entry("a", b"a"), Entry("a", b"b")])


def test_a_failed_bundle_leaves_the_earlier_one(tmp_path: Path, parts: list[Part]) -> None:
    with pytest.raises(FileNotFoundError):
        _written(tmp_path / "parts", [Entry("a", b"a"), Entry("b", tmp_path / "absent")])
    assert unpack.problems(unpack.read_index(parts[0].path), parts[0].path) == []
    assert not (tmp_path / "parts/.unfinished").exists()


# Plans


def _plan(*steps: Step) -> Plan:
    return Plan(steps, ("work/*.out",), ("work/{step}/best",))


def _python(name: str, script: str, **options: Any) -> Step:
    return Step(name, ("python", "-c", script, "{work}"), **options)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = _plan(_python("a", "0", json=True), _python("b", "1", cut_after_minutes=2.0))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert plans.read_plan(path) == plan


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"steps": []}, "one step"),
        ({"steps": [{"name": "A", "command": ["python"]}]}, "'A'"),
        ({"steps": [{"name": "a", "command": []}]}, "command"),
        ({"steps": [{"name": "a", "command": ["x"], "cutt": 1}]}, "cutt"),
        ({"steps": [{"name": "a", "command": ["x"], "cut_after_minutes": 0}]}, "above 0"),
        ({"steps": [{"name": "a", "command": ["x"]}] * 2}, "name of its own"),
        ({}, "steps"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=said):
        plans.read_plan(path)


def test_listening_is_trained_stage_by_stage() -> None:
    plan = plans.listening(
        "mini",
        texts="texts/texts.jsonl.gz",
        recordings=["people"],
        recipes={"sft": "recipes/sft.yaml"},
        minutes={"speech": 1.0, "sft": 30.0},
    )
    steps = {step.name: step for step in plan.steps}
    assert list(steps)[:5] == ["speech", "adapt", "pre-align", "sft", "export"]
    assert steps["speech"].cut_after_minutes == 1.0
    sft = " ".join(steps["sft"].command)
    assert "--recipe {root}/recipes/sft.yaml" in sft
    assert "--init {work}/pre-align" in sft
    assert "--minutes 30 " in sft
    assert "--data {root}/home/speech/made --data {root}/home/speech/people" in sft
    assert "speech" not in {
        step.name for step in plans.listening("mini", texts=None, recordings=["a"]).steps
    }
    with pytest.raises(BundleError, match="nothing to learn from"):
        plans.listening("mini", texts=None)
    with pytest.raises(BundleError, match="no step 'tft'"):
        plans.listening("mini", texts="a", minutes={"tft": 1.0})


def _options_of(app: typer.Typer, *path: str) -> set[str]:
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}


def test_speaking_is_trained_into_one_voice_set() -> None:
    plan = speaking(
        "mini",
        texts="texts/texts.jsonl.gz",
        folders=Folders(["people"], ["kathleen"], ["styles"]),
        tokenizer=False,
        recipes={"speak": "recipes/speak.yaml"},
        minutes={"speak": 30.0},
    )
    steps = {step.name: " ".join(step.command) for step in plan.steps}
    assert list(steps) == [
        *("speech", "speech-tokenizer", "export-speech-tokenizer", "tokens"),
        *("token2wav", "export-token2wav"),
        *("vocoder", "vocoder-adversarial", "export-vocoder-adversarial"),
        *("speak", "speak-voice", "speak-dialogue", "export-speak-dialogue"),
    ]
    made, people, kathleen, styles = (
        f"{{root}}/home/speech/{name}" for name in ("made-24k", "people", "kathleen", "styles")
    )
    assert f"--rate 24000 --out {made}" in steps["speech"]
    assert f"tokens {made} {people} {kathleen} {styles} --workers" in steps["tokens"]
    assert f"--data {made} --data {people} --data {kathleen} --minutes" in steps["token2wav"]
    assert f"--data {kathleen} --init {{work}}/vocoder " in steps["vocoder-adversarial"]
    assert "text-to-speech --recipe {root}/recipes/speak.yaml" in steps["speak"]
    assert f"--data {made} --data {people} --minutes 30 " in steps["speak"]
    assert f"--data {kathleen} --init {{work}}/speak " in steps["speak-voice"]
    assert f"--data {styles} --data {kathleen} --init {{work}}/speak-v" in steps["speak-dialogue"]
    assert "home/weights/*/voice/**/*" in plan.results


def test_speaking_needs_no_more_than_there_is() -> None:
    def names(folders: Folders, *, tokenizer: bool = True) -> list[str]:
        plan = speaking("mini", texts=None, folders=folders, tokenizer=tokenizer)
        return [step.name for step in plan.steps]

    assert names(Folders(["people"]))[-2:] == ["speak", "export-speak"]
    assert names(Folders(voice=["kathleen"]))[-2:] == ["speak", "export-speak"]
    assert "speech-tokenizer" not in names(Folders(["people"]))
    assert names(Folders(["people"]), tokenizer=False)[0] == "speech-tokenizer"
    with pytest.raises(BundleError, match="nothing to learn from"):
        names(Folders(instructed=["styles"]))
    with pytest.raises(BundleError, match="no step 'sft'"):
        speaking("mini", texts="a", folders=Folders(), tokenizer=True, minutes={"sft": 1.0})


_PLANS = {
    "listening": plans.listening("mini", texts="texts", recordings=["people"]),
    "speaking": speaking(
        "mini",
        texts="texts",
        folders=Folders(["people"], ["kathleen"], ["styles"]),
        tokenizer=False,
    ),
}


@pytest.mark.parametrize("trained", list(_PLANS))
def test_the_commands_of_the_plan_have_the_options_that_it_gives(trained: str) -> None:
    plan = _PLANS[trained]
    checked = 0
    for step in plan.steps:
        program, group, name, *rest = step.command
        assert program == "minmo"
        given = {word for word in rest if word.startswith("--")}
        assert given <= _options_of(_APPS[group], name), step.name
        checked += len(given)
    assert checked > 30


# Runs


def _root(folder: Path, *steps: Step) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / run.PLAN).write_text(json.dumps(_plan(*steps).to_json()))
    return folder


def _run(root: Path, minutes: float | None = None) -> int:
    return run.Run(root, minutes, root / "results")()


def _figures(root: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((root / run.FIGURES).read_text())
    return figures


_NEEDS = "import sys, pathlib; sys.exit(not pathlib.Path(sys.argv[1], {name!r}).exists())"
_ADD = "import sys, pathlib; open(pathlib.Path(sys.argv[1], {name!r}), 'a').write('x')"


def test_steps_run_once_in_their_order_and_their_figures_and_lines_are_kept(tmp_path: Path) -> None:
    root = _root(
        tmp_path / "root",
        _python("first", _ADD.format(name="first.out") + "; print('a line')"),
        _python("second", "import json; print(json.dumps({'rate': 0.5}))", json=True),
    )
    assert _run(root) == 0
    assert _run(root) == 0
    figures = _figures(root)["steps"]
    assert (root / "work/first.out").read_text() == "x"
    assert figures["second"]["status"] == "done"
    assert figures["second"]["figures"] == {"rate": 0.5}
    assert figures["first"]["seconds"] > 0
    assert "first: a line" in (root / run.LOG).read_text()


def test_a_failed_step_stops_the_run_which_goes_on_from_there(tmp_path: Path) -> None:
    root = _root(
        tmp_path / "root",
        _python("first", _ADD.format(name="first.out")),
        _python("second", _NEEDS.format(name="mended")),
        _python("third", _ADD.format(name="third.out")),
    )
    assert _run(root) == run.EXIT_FAILED
    assert _figures(root)["steps"]["second"]["status"] == "failed"
    assert not (root / "work/third.out").exists()
    (root / "work/mended").touch()
    assert _run(root) == 0
    assert (root / "work/first.out").read_text() == (root / "work/third.out").read_text() == "x"


def test_an_optional_step_may_fail(tmp_path: Path) -> None:
    root = _root(
        tmp_path / "root",
        _python("first", "raise SystemExit(1)", optional=True),
        _python("second", _ADD.format(name="second.out")),
    )
    assert _run(root) == 0
    assert (root / "work/second.out").exists()


_SLOW = """
import pathlib, sys, time
here = pathlib.Path(sys.argv[1], 'slow.out')
try:
    while here.stat().st_size < 3 if here.exists() else True:
        time.sleep(0.02 if here.exists() and here.stat().st_size > 1 else 30)
        here.open('a').write('x')
except KeyboardInterrupt:
    here.open('a').write('ss')
    raise SystemExit(130)
"""


def test_a_cut_run_brings_home_what_it_has_and_goes_on(tmp_path: Path) -> None:
    root = _root(tmp_path / "root", _python("slow", _SLOW), _python("next", "0"))
    began = time.monotonic()
    assert _run(root, minutes=1.5 / 60) == run.EXIT_TIME_UP
    assert time.monotonic() - began < 10
    figures = _figures(root)["steps"]
    assert figures["slow"]["status"] == "cut"
    assert figures["next"]["status"] == "not begun"
    (home,) = (
        path for path in results.collect(root / "results", tmp_path) if path.suffix == ".out"
    )
    assert home.read_text() == "ss"
    assert _run(root, minutes=1) == 0
    assert (root / "work/slow.out").read_text() == "ssx"


def test_a_step_with_a_limit_is_cut_and_its_work_used(tmp_path: Path) -> None:
    slow = _python("slow", "import time; time.sleep(60)", cut_after_minutes=0.5 / 60)
    root = _root(tmp_path / "root", slow, _python("next", _ADD.format(name="next.out")))
    assert _run(root) == 0
    assert _figures(root)["steps"]["slow"]["status"] == "limited"
    assert (root / "work/next.out").exists()
    assert _run(root) == 0
    assert (root / "work/next.out").read_text() == "x"


def test_a_terminated_run_ends_its_step_and_writes_results(tmp_path: Path) -> None:
    root = _root(
        tmp_path / "root", _python("slow", "import time; print('up', flush=True); time.sleep(60)")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", run.__name__, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "slow: up" in line:
            break
    process.terminate()
    process.stdout.read()
    assert process.wait(10) == run.EXIT_INTERRUPTED
    assert (root / "results/results.json").exists()


def test_what_a_cut_step_has_comes_home_or_else_what_the_one_before_has(tmp_path: Path) -> None:
    best = "import sys, pathlib; f = pathlib.Path(sys.argv[1], 'first'); f.mkdir(exist_ok=True);"
    root = _root(
        tmp_path / "root",
        _python("first", best + "(f / 'best').write_text('weights')"),
        _python(
            "second", "import sys, pathlib; sys.exit(not pathlib.Path(sys.argv[1], 'go').exists())"
        ),
    )
    assert _run(root) == run.EXIT_FAILED
    assert "work/first/best" in [
        path.relative_to(tmp_path).as_posix()
        for path in results.collect(root / "results", tmp_path)
    ]
    (root / "work/go").touch()
    assert _run(root) == 0
    listed = json.loads((root / "results/results.json").read_text())
    assert not [file for file in listed["files"] if file["path"].endswith("best")]


def test_again_forgets_a_step(tmp_path: Path) -> None:
    root = _root(tmp_path / "root", _python("first", _ADD.format(name="first.out")))
    assert run.main([str(root)]) == 0
    assert run.main([str(root), "--again", "first"]) == 0
    assert (root / "work/first.out").read_text() == "xx"


# Results


def test_results_are_split_and_joined(tmp_path: Path) -> None:
    root, parts, home = tmp_path / "root", tmp_path / "parts", tmp_path / "home"
    (root / "a").mkdir(parents=True)
    (root / "a/big").write_bytes(_random(2_500_000))
    (root / "small").write_bytes(b"small")
    (root / "empty").write_bytes(b"")
    written = results.split(root, ["a/*", "small", "empty", "absent"], parts, 1_000_000)
    assert [path.stat().st_size for path in written] == [1_000_000, 1_000_000, 500_005]
    files = results.collect(parts, home)
    assert [path.relative_to(home).as_posix() for path in files] == ["a/big", "empty", "small"]
    assert (home / "a/big").read_bytes() == _random(2_500_000)
    # Fewer results afterwards leave no part of the earlier ones.
    assert len(results.split(root, ["small"], parts, 1_000_000)) == 1
    assert len(list(parts.iterdir())) == 2


def test_missing_and_damaged_results_are_named(tmp_path: Path) -> None:
    root, parts = tmp_path / "root", tmp_path / "parts"
    root.mkdir()
    with pytest.raises(results.ResultsError, match=r"no results\.json"):
        results.collect(root, tmp_path / "home")
    (root / "big").write_bytes(_random(3_000))
    written = results.split(root, ["big"], parts, 1_000)
    written[1].unlink()
    written[2].write_bytes(bytes(1_000))
    with pytest.raises(results.ResultsError) as caught:
        results.collect(parts, tmp_path / "home")
    assert f"missing: {written[1].name}" in str(caught.value)
    assert f"damaged: {written[2].name}" in str(caught.value)
    assert written[0].name not in str(caught.value)
    assert not (tmp_path / "home").exists()


# The machine


def _wheel(folder: Path, name: str, tag: str = "py3-none-any", needs: str = "") -> Path:
    path = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
        archive.writestr(f"{name}-1.0.data/platlib/{name}_more.py", "MORE = True\n")
        archive.writestr(f"{name}-1.0.data/scripts/{name}", "#!python\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def _machine(root: Path, python: str | None = None, has: tuple[str, ...] = ("pytest",)) -> Path:
    (root / "wheels").mkdir(parents=True)
    (root / "code").mkdir()
    _wheel(root / "wheels", "carried")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    about = {"python": python or here, "has": has, "imports": ["carried"]}
    (root / start.ABOUT).write_text(json.dumps(about))
    return root


_TRY = "import carried, carried_more, pytest; print(carried.NAME, carried.__file__)"


def _tried(python: Path, paths: list[Path]) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [str(python), "-c", _TRY]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_an_environment_has_the_wheels_and_the_machines_packages(tmp_path: Path) -> None:
    root = _machine(tmp_path / "root")
    python, paths = start.prepare(root)
    assert python.is_relative_to(root)
    assert str(root / "env") in _tried(python, paths)
    stamp = (root / "env/pyvenv.cfg").stat().st_mtime_ns
    assert start.prepare(root) == (python, paths)
    assert (root / "env/pyvenv.cfg").stat().st_mtime_ns == stamp


def test_without_pip_the_wheels_lie_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _machine(tmp_path / "root")
    real = start.find_spec
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == "pip" else real(name))
    python, paths = start.prepare(root)
    assert python == Path(sys.executable)
    assert str(root / "site") in _tried(python, paths)
    assert not (root / "env").exists()
    assert start.prepare(root) == (python, paths)


def test_another_python_and_absent_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(start.StartError, match=r"for Python 2\.7"):
        start.prepare(_machine(tmp_path / "old", python="2.7"))
    with pytest.raises(start.StartError, match="lacks not_there"):
        start.prepare(_machine(tmp_path / "bare", has=("not_there",)))


# Wheels


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Wheels that pip finds, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_are_fetched_with_what_they_need_that_the_machine_lacks(
    tmp_path: Path, index: Path
) -> None:
    needs = (
        "Requires-Dist: shared_zz\nRequires-Dist: own-zz; extra == 'x'\n"
        "Requires-Dist: old_zz; python_version < '3.12'\nRequires-Dist: native_zz>=1\n"
    )
    _wheel(index, "root_zz", needs=needs)
    _wheel(index, "native_zz", "cp312-cp312-manylinux_2_28_x86_64")
    into = tmp_path / "wheels"
    fetched = wheels.fetch("3.12", ["shared-zz"], into, ["root_zz"])
    assert [path.name for path in fetched] == [
        "native_zz-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "root_zz-1.0-py3-none-any.whl",
    ]


def test_a_wheel_that_is_not_to_be_had_is_named(tmp_path: Path, index: Path) -> None:
    _wheel(index, "native_zz", "cp312-cp312-win_amd64")
    with pytest.raises(BundleError, match=r"native_zz.*--has"):
        wheels.fetch("3.12", [], tmp_path / "wheels", ["native_zz"])


def test_what_the_machines_packages_need_is_there_too() -> None:
    found = wheels._needs_of(["torch", "not-there"], wheels._environment("3.12"))
    assert "sympy" in found
    # A need of sympy's, and so of no concern to this version of torch alone.
    assert "mpmath" not in found


# The whole


def _weights(folder: Path, home: Path) -> Path:
    preset = write_preset(folder)
    for name in ("voice_encoder", "llm"):
        target = home / "weights/tiny" / name
        write_module(preset, name, random_module(preset, name), folder=target)
    return preset


def test_the_code_has_what_is_generated_and_knows_its_version() -> None:
    paths = [entry.path for entry in code()]
    assert "code/minmo/v1/llm_pb2.py" in paths
    assert "code/minmo/presets/mini.toml" in paths
    assert "code/minmo/training/bundle/run.py" in paths
    assert any(path.endswith(".dist-info/METADATA") for path in paths)
    assert not any("__pycache__" in path for path in paths)


@pytest.fixture
def contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Contents]:
    """A small bundle's contents, with weights of a tiny preset."""
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    preset = _weights(tmp_path, tmp_path / "home")
    shard = tmp_path / "heard/train.0000"
    shard.mkdir(parents=True)
    (shard / "cuts.jsonl.gz").write_bytes(b"cuts")
    (shard / "recording.tar").write_bytes(b"audio")
    (tmp_path / "heard/.unfinished").write_bytes(b"half")
    script = (
        "import sys, pathlib; from minmo.weights.modules import load_module;"
        "preset = sys.argv[2];"
        "sizes = [len(load_module(preset, m).state_dict())"
        " for m in ('voice_encoder', 'llm')];"
        "pathlib.Path(sys.argv[1], 'sizes.out').write_text(repr(sizes))"
    )
    step = Step("train", ("python", "-c", script, "{work}", "{root}/presets/tiny.toml"))

    def made(**changes: Any) -> Contents:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        given = {"plan": _plan(step), "preset": str(preset), "python": here, "roots": {}}
        return Contents(**{**given, "recordings": {"heard": tmp_path / "heard"}, **changes})

    return made


def test_a_bundle_unpacks_runs_and_comes_home(
    tmp_path: Path, contents: Callable[..., Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make(contents(), tmp_path / "parts", 60_000_000)
    there, preset = tmp_path / "there", contents().preset
    sizes = [len(load_module(preset, name).state_dict()) for name in ("voice_encoder", "llm")]
    assert unpack.main([str(there)], parts[0].path) == 0
    shutil.rmtree(tmp_path / "home")
    assert (there / "home/speech/heard/train.0000/recording.tar").read_bytes() == b"audio"
    assert not list(there.rglob("*.unfinished"))
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(there / "run.sh"), "--minutes", "1"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "collected"
    results.collect(there / "results", home)
    assert json.loads((home / "work/sizes.out").read_text()) == sizes
    assert json.loads((home / run.FIGURES).read_text())["machine"]["torch"] == torch.__version__


def test_a_voice_is_trained_from_a_bundle_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = make_place(tmp_path)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    for name, count in (("train.0000", 6), ("valid.0000", 2)):
        shard = write_shard(tmp_path / "people-24k", name, count)
        name_tokens(preset, shard, lambda text, _: spelled_aloud(text))
    plan = speaking(
        preset_there(str(preset)),
        texts=None,
        folders=Folders(["people-24k"]),
        tokenizer=True,
        minutes={"token2wav": 0.01},
    )
    begun = plans.Plan(plan.steps[:3], plan.results, plan.unfinished)
    assert [step.name for step in begun.steps] == ["tokens", "token2wav", "export-token2wav"]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    contents = Contents(
        plan=begun,
        preset=str(preset),
        modules=("voice_encoder", "llm", "speech_tokenizer"),
        recordings={"people-24k": tmp_path / "people-24k"},
        python=here,
        roots={},
    )
    parts = make(contents, tmp_path / "parts", 60_000_000)
    assert all(part.size <= 60_000_000 for part in parts)
    there = tmp_path / "there"
    assert unpack.main([str(there)], parts[0].path) == 0
    # Nothing but the parts is there.
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "people-24k")
    preset.unlink()
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(there / "run.sh"), "--minutes", "5"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 speech tokens of 0 clips" in done.stdout
    assert "2 shards had theirs" in done.stdout
    home = tmp_path / "collected"
    results.collect(there / "results", home)
    # The voice set comes home with the tokenizer that it was trained with.
    monkeypatch.setenv("MINMO_HOME", str(home / "home"))
    there_preset = str(there / "presets/tiny.toml")
    load_module(
        there_preset, "flow_matching", folder=home / "home/weights/tiny/voice/flow_matching"
    )
    assert {path.name for path in (home / "home/weights/tiny/voice").iterdir()} == {
        *("speech_tokenizer", "flow_matching", "speakers")
    }
    assert (home / "work/token2wav/curves/train.csv").is_file()


def test_modules_of_the_voice_lie_in_its_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = make_place(tmp_path)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    entries = weights(str(preset), ("llm", "speech_tokenizer"), tmp_path)
    folders = {entry.path.rsplit("/", 1)[0] for entry in entries}
    assert folders == {"home/weights/tiny/llm", "home/weights/tiny/voice/speech_tokenizer"}


def test_what_lacks_is_said_before_anything_is_packed(
    tmp_path: Path, contents: Callable[..., Contents]
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("{}\n")
    with pytest.raises(BundleError, match="no phonemes beside it"):
        make(contents(texts=texts), tmp_path / "parts", 60_000_000)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BundleError, match="no shards"):
        make(contents(recordings={"nothing": tmp_path / "nothing"}), tmp_path / "parts", 60_000_000)
    with pytest.raises(BundleError, match="absent"):
        make(contents(files={"a": tmp_path / "absent"}), tmp_path / "parts", 60_000_000)
