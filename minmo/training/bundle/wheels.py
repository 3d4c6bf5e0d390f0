"""The wheels that training needs on a machine of another kind, fetched with this machine's pip.

The versions are those that are installed here, which are known to work together. Which packages
belong to them is read from the wheels themselves, so that nothing is fetched that the other
machine has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterable, Mapping
from email.parser import HeaderParser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.markers import Environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from minmo.training.bundle.errors import BundleError

ROOTS: Mapping[str, str] = {
    "accelerate": "accelerate",
    "certifi": "certifi",
    "filelock": "filelock",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health.v1.health_pb2",
    "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
    "grpcio-status": "google.rpc.error_details_pb2",
    "httpx": "httpx",
    "jiwer": "jiwer",
    "lhotse": "lhotse",
    "onnxruntime": "onnxruntime",
    "prometheus-client": "prometheus_client",
    "protobuf": "google.protobuf",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pydantic-settings": "pydantic_settings",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "structlog": "structlog",
    "tokenizers": "tokenizers",
    "typer": "typer",
}
"""What training, its data, its evaluation and the command line import: package and module."""

_GLIBC_MINOR = range(5, 29)
_LEGACY = ("manylinux1", "manylinux2010", "manylinux2014")
_DEADLINE_S = 900.0


def fetch(
    python: str, has: Collection[str], folder: Path, roots: Iterable[str] = ROOTS
) -> list[Path]:
    """Downloads wheels for x86-64 Linux with glibc 2.28 or newer.

    Args:
        python: version of the other machine's Python, such as `3.12`.
        has: packages that the other machine has. What they need themselves it has, too.
        folder: to download into.
        roots: what is needed, by name.

    Returns:
        The wheels, in order of their names.

    Raises:
        BundleError: there is no pip, or it finds no wheel of a package.
    """
    environment = _environment(python)
    present = {canonicalize_name(name) for name in has} | _needs_of(has, environment)
    wanted = {canonicalize_name(name): _pinned(name) for name in roots}
    fetched: dict[str, Path] = {}
    while wanted := {name: how for name, how in wanted.items() if name not in present}:
        new = _download(wanted.values(), python, folder, fetched)
        fetched |= new
        present |= wanted.keys() | new.keys()
        wanted = {
            canonicalize_name(one.name): _pinned(one.name, one)
            for wheel in new.values()
            for one in _requirements(wheel, environment)
        }
    return [fetched[name] for name in sorted(fetched)]


def _environment(python: str) -> Mapping[str, str]:
    environment = Environment(
        implementation_name="cpython",
        implementation_version=f"{python}.0",
        os_name="posix",
        platform_machine="x86_64",
        platform_python_implementation="CPython",
        platform_release="",
        platform_system="Linux",
        platform_version="",
        python_full_version=f"{python}.0",
        python_version=python,
        sys_platform="linux",
    )
    return {key: str(value) for key, value in environment.items()}


def _applies(requirement: Requirement, environment: Mapping[str, str]) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({**environment, "extra": ""})


def _needs_of(names: Iterable[str], environment: Mapping[str, str]) -> set[str]:
    """What packages need themselves, as far as they are installed here.

    What those need in turn differs from version to version, and is packed to be sure.
    """
    found: set[str] = set()
    for name in names:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found |= {
            str(canonicalize_name(requirement.name))
            for requirement in map(Requirement, needs)
            if _applies(requirement, environment)
        }
    return found


def _pinned(name: str, requirement: Requirement | None = None) -> str:
    """The installed version; of what isn't installed here, what was asked for."""
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name if requirement is None else f"{name}{requirement.specifier}"


def _requirements(wheel: Path, environment: Mapping[str, str]) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        header = HeaderParser().parsestr(archive.read(name).decode())
    needs = map(Requirement, header.get_all("Requires-Dist") or [])
    return [requirement for requirement in needs if _applies(requirement, environment)]


def _download(
    requirements: Iterable[str], python: str, folder: Path, known: Mapping[str, Path]
) -> dict[str, Path]:
    if find_spec("pip") is None:
        raise BundleError(
            f"the environment of {sys.executable} has no pip, which fetches the wheels; add it "
            "with `python -m ensurepip`, or leave them out with --no-wheels"
        )
    platforms = [
        *(f"manylinux_2_{minor}_x86_64" for minor in reversed(_GLIBC_MINOR)),
        *(f"{name}_x86_64" for name in _LEGACY),
    ]
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"),
        *("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)),
        *("--python-version", python, "--implementation", "cp"),
        *(option for platform in platforms for option in ("--platform", platform)),
        *sorted(requirements),
    ]
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
        raise BundleError(f"pip fetched no wheels in {_DEADLINE_S:.0f} s; is it online?") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BundleError(
            f"pip finds no wheels for Python {python} on x86-64 Linux: "
            f"{' '.join(said[-2:]) or done.stderr.strip()[-300:]}; if the machine has the package, "
            "name it in --has"
        )
    wheels = {
        str(parse_wheel_filename(path.name)[0]): path for path in sorted(folder.glob("*.whl"))
    }
    return {name: path for name, path in wheels.items() if name not in known}
