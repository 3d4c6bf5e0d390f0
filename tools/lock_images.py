"""Pin what each image installs: `python -m tools.lock_images` writes `deploy/images/requirements`.

Every file holds what one image adds to the image below it, each package in one version and with the
hashes of the archives that fit. Versions come from `pyproject.toml` and, for what that does not
name, from the environment that this runs in, which is the one that the tests ran in. `uv` resolves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "images" / "requirements"

SERVICE_PYTHON, TRITON_PYTHON = "3.11.15", "3.12.3"
"""The Python of MinMo's own images, and the one that NVIDIA's Triton image has."""
_PLATFORM = "x86_64-manylinux_2_28"

_GRPC = ("grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "protobuf")
_FOLDERS = ("certifi", "filelock", "httpx", "rich", "tokenizers")
_WEIGHTS = (*_FOLDERS, "safetensors")
_HEADER = "# Written by tools/lock_images.py.\n"
_EVERYTHING = "*"


@dataclass(frozen=True)
class Image:
    """What one image adds.

    Attributes:
        needs: packages that its code imports, as `pyproject.toml` names them; `*` is all of its
            `dependencies`.
        extras: optional dependencies of `pyproject.toml` that it has as well.
        below: the images that it stands on.
        pythons: the Pythons whose archives fit.
    """

    needs: tuple[str, ...]
    extras: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    pythons: tuple[str, ...] = (SERVICE_PYTHON,)


IMAGES = {
    "build": Image(("setuptools", "grpcio-tools")),
    "base": Image(
        (
            *_GRPC,
            *("numpy", "prometheus-client", "pydantic", "pydantic-settings", "structlog", "uvloop"),
        ),
        extras=("tracing",),
    ),
    "torch": Image(("torch",), below=("base",), pythons=(SERVICE_PYTHON, TRITON_PYTHON)),
    "encoder": Image(
        (*_WEIGHTS, "onnxruntime", "soundfile", "soxr"), below=("base", "torch", "torch-cuda")
    ),
    "voice-decoder": Image(
        (*_WEIGHTS, "soundfile", "soxr", "ttspico"), below=("base", "torch", "torch-cuda")
    ),
    "llm": Image((*_FOLDERS, "tritonclient"), below=("base",)),
    "orchestrator": Image(
        ("jsonschema", "redis", "referencing", "soundfile"),
        extras=("opus",),
        below=("base",),
    ),
    "gateway": Image(
        ("aiohttp", "cryptography", "PyJWT", "soundfile"), extras=("opus",), below=("base",)
    ),
    "triton-cpu": Image(_WEIGHTS, below=("base", "torch", "torch-cuda")),
    "triton": Image(
        (
            *_WEIGHTS,
            *("numpy", "prometheus-client", "protobuf", "pydantic", "pydantic-settings"),
            *("structlog", "torch"),
        ),
        below=("torch", "torch-cuda"),
        pythons=(TRITON_PYTHON,),
    ),
    # pip finds the packages that carry weights.
    "cli": Image(
        (_EVERYTHING, "pip"), extras=("hub", "opus"), below=("base", "torch", "torch-cuda")
    ),
}
"""By the name of the image's Dockerfile; an image comes behind those that it stands on."""


@dataclass(frozen=True)
class Locked:
    """One package: its name, its version, and the hashes of its archives."""

    name: str
    version: str
    hashes: frozenset[str]


def main() -> int:
    """Write all files; return the exit status."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    written: dict[str, set[str]] = {}
    for name, image in IMAGES.items():
        locked = resolve(requirements_of(image, project), image.pythons)
        held = {package for below in image.below for package in written.get(below, ())}
        if name == "torch":
            # What only PyTorch's CUDA build needs stays out of the images for a CPU.
            cuda = [package for package in locked if of_cuda(package.name)]
            written["torch-cuda"] = write("torch-cuda", cuda)
            held |= written["torch-cuda"]
        written[name] = write(name, [package for package in locked if package.name not in held])
    return 0


def requirements_of(image: Image, project: dict[str, object]) -> list[str]:
    """The pinned requirements of an image, as `pyproject.toml` has them."""
    table = project["project"]
    assert isinstance(table, dict)
    optional = table["optional-dependencies"]
    lines = [*table["dependencies"], *project["build-system"]["requires"]]  # type: ignore[index]
    pins = {canonical(line): line for line in lines}
    everything = [*map(canonical, table["dependencies"])]
    names = [
        name
        for need in image.needs
        for name in (everything if need == _EVERYTHING else [canonical(need)])
    ]
    # An extra that does not exist (any more) is left out.
    extras = [line for extra in image.extras for line in optional.get(extra, ())]
    return [*(pins.get(name, name) for name in names), *extras]


def resolve(requirements: list[str], pythons: tuple[str, ...]) -> list[Locked]:
    """All that the requirements need, by name, with the archives for each of the Pythons."""
    found: dict[str, Locked] = {}
    for python in pythons:
        for package in _resolve(requirements, python):
            other = found.setdefault(package.name, package)
            if other.version != package.version:
                raise SystemExit(f"{package.name}: {other.version} and {package.version}")
            found[package.name] = Locked(
                package.name, package.version, other.hashes | package.hashes
            )
    return [found[name] for name in sorted(found)]


def _resolve(requirements: list[str], python: str) -> list[Locked]:
    with tempfile.TemporaryDirectory() as folder:
        wanted, known, lock = (
            Path(folder) / name for name in ("in.txt", "known.txt", "pylock.toml")
        )
        wanted.write_text("\n".join(requirements) + "\n")
        known.write_text("\n".join(versions_here()) + "\n")
        command = [find_uv_bin(), "--no-config", "pip", "compile", "--quiet", str(wanted)]
        command += ["--constraint", str(known), "--python-version", python]
        command += ["--python-platform", _PLATFORM, "--output-file", str(lock)]
        subprocess.run(command, check=True)
        packages = tomllib.loads(lock.read_text())["packages"]
    return [
        Locked(canonical(one["name"]), one["version"], frozenset(_hashes(one, python)))
        for one in packages
    ]


def _hashes(package: dict[str, object], python: str) -> list[str]:
    """The hashes of the wheels that the Python takes; of the sources where there is no wheel."""
    wheels = package.get("wheels", [])
    assert isinstance(wheels, list)
    archives = [wheel for wheel in wheels if _fits(str(wheel["url"]), python)]
    return [archive["hashes"]["sha256"] for archive in archives or [package["sdist"]]]


def _fits(address: str, python: str) -> bool:
    tags, abi, platform = address.removesuffix(".whl").rsplit("-", 3)[1:]
    own = "cp{}{}".format(*python.split("."))
    right_python = own in tags.split(".") or "py3" in tags or abi == "abi3"
    return right_python and ("x86_64" in platform or platform == "any")


def versions_here() -> list[str]:
    """What is installed here, as constraints; local versions are builds of the same release."""
    return sorted(
        f"{package.name}=={package.version.partition('+')[0]}"
        for package in distributions()
        if canonical(package.name) != "minmo"
    )


def of_cuda(name: str) -> bool:
    """Whether a package belongs to PyTorch's CUDA build: PyTorch itself, and what only that has."""
    return name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))


def canonical(requirement: str) -> str:
    """A requirement's name as the index spells it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def write(name: str, packages: list[Locked]) -> set[str]:
    """Write one file; return the names in it."""
    lines = []
    for package in packages:
        hashes = [f"    --hash=sha256:{digest}" for digest in sorted(package.hashes)]
        lines.append(" \\\n".join([f"{package.name}=={package.version}", *hashes]))
    (FOLDER / f"{name}.txt").write_text(_HEADER + "\n".join(lines) + "\n")
    return {package.name for package in packages}


if __name__ == "__main__":
    sys.exit(main())
