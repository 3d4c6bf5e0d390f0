"""The Triton server out of its wheel: a folder from which `tritonserver` starts."""

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from minmo.weights import home
from minmo.weights.errors import WeightsError

_SERVER = Path("pytriton/tritonserver")
_STUB = "triton_python_backend_stub"
_LDD_DEADLINE_S = 20.0

_DEBIAN_PACKAGES = {
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libz.so.1": "zlib1g",
    "libexpat.so.1": "libexpat1",
}


def server_binary() -> Path:
    """Return the path of `tritonserver`; it need not exist."""
    return home.triton_folder() / _SERVER / "bin" / "tritonserver"


def backend_folder() -> Path:
    """Return what `--backend-directory` takes; it need not exist."""
    return home.triton_folder() / _SERVER / "backends"


def library_path() -> str:
    """Return the `LD_LIBRARY_PATH` that lets the python backend find this Python's library."""
    return str(sysconfig.get_config_var("LIBDIR") or "")


def python_version() -> str:
    """Return the version that selects the backend's stub, for instance `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def make_executable(folder: Path) -> None:
    """Set the bits that a wheel's archive does not carry.

    Args:
        folder: holds the wheel's `pytriton/` and `nvidia_pytriton.libs/`.
    """
    (folder / _SERVER / "bin" / "tritonserver").chmod(0o755)
    for stub in (folder / _SERVER / "python_backend_stubs").rglob(_STUB):
        stub.chmod(0o755)


def fit_to_machine(folder: Path) -> None:
    """Check that the server can start here, then select the stub of the running Python.

    Raises:
        WeightsError: there is no stub for this Python, or a shared library is missing.
    """
    stub = _stub(folder)
    check_libraries(folder)
    target = folder / _SERVER / "backends" / "python" / _STUB
    unfinished = target.with_name(_STUB + ".new")
    shutil.copy2(stub, unfinished)
    unfinished.rename(target)


def _stub(folder: Path) -> Path:
    stubs = folder / _SERVER / "python_backend_stubs"
    stub = stubs / python_version() / _STUB
    if not stub.exists():
        known = sorted((path.name for path in stubs.iterdir()), key=lambda v: int(v.split(".")[1]))
        raise WeightsError(
            f"this Triton server runs models on Python {known[0]} to {known[-1]}, and this is "
            f"{python_version()}; make MinMo's environment with one of those"
        )
    return stub


def fits_machine(folder: Path) -> bool:
    """Say whether the selected stub is the running Python's."""
    stub = folder / _SERVER / "python_backend_stubs" / python_version() / _STUB
    target = folder / _SERVER / "backends" / "python" / _STUB
    try:
        # A stub is copied with its times, and two versions may have the same size.
        wanted, selected = stub.stat(), target.stat()
    except OSError:
        return False
    return (wanted.st_size, wanted.st_mtime_ns) == (selected.st_size, selected.st_mtime_ns)


def check_libraries(folder: Path) -> None:
    """Check that the loader finds every library of the server, its backend and the stub.

    Raises:
        WeightsError: with the Debian packages that bring the missing ones.
    """
    server = folder / _SERVER
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise WeightsError(
            f"the packaged Triton server runs on x86-64 Linux, and this is {platform.system()} on "
            f"{platform.machine()}; use Triton's own image there"
        )
    missing: dict[str, None] = {}
    for binary in (
        server / "bin" / "tritonserver",
        server / "backends" / "python" / "libtriton_python.so",
        _stub(folder),
    ):
        listing = _ldd(binary)
        if old := re.search(r"version `(GLIBC_[\d.]+)' not found", listing):
            raise WeightsError(
                f"{binary.name} needs {old[1].replace('_', ' ')} or newer, which Debian 12 and "
                "Ubuntu 22.04 have; use such a system or Triton's own image"
            )
        missing |= dict.fromkeys(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))
    if missing:
        packages = sorted({_debian_package(library) for library in missing})
        raise WeightsError(
            f"the Triton server misses {', '.join(missing)}; on Debian and Ubuntu: "
            f"apt-get install {' '.join(packages)}"
        )


def _debian_package(library: str) -> str:
    if python := re.match(r"libpython(3\.\d+)\.so", library):
        return f"libpython{python[1]}"
    return _DEBIAN_PACKAGES.get(library, library)


def _ldd(binary: Path) -> str:
    ldd = shutil.which("ldd")
    if ldd is None:
        raise WeightsError("there is no `ldd` to check the Triton server with; install libc-bin")
    done = subprocess.run(
        [ldd, str(binary)],
        check=False,
        capture_output=True,
        text=True,
        timeout=_LDD_DEADLINE_S,
        env={"LD_LIBRARY_PATH": library_path()},
    )
    return done.stdout + done.stderr
