"""Prepares the unpacked bundle on its machine, once, and hands over to `run`.

`run.sh` starts this file with the machine's Python, which has PyTorch and nothing of MinMo's; so
it uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

ABOUT = "about.json"
RUN_MODULE = "minmo.training.bundle.run"
_ENV, _SITE, _COMPLETE = "env", "site", ".complete"


class StartError(Exception):
    """This machine cannot run the bundle; the text says why and what would do."""


def prepare(root: Path) -> tuple[Path, list[Path]]:
    """Makes an environment with the bundle's wheels that sees the packages of this Python too.

    With pip it is a virtual environment; without, the wheels are unpacked beside the code.

    Args:
        root: the unpacked bundle.

    Returns:
        The interpreter, and the folders for `PYTHONPATH`.

    Raises:
        StartError: this Python is another than the wheels are for, or lacks a package.
    """
    about = json.loads((root / ABOUT).read_text())
    wheels = sorted((root / "wheels").glob("*.whl"))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wheels and here != about["python"]:
        raise StartError(
            f"the bundle's wheels are for Python {about['python']} and this is {here}: start it "
            f"with PYTHON=python{about['python']} ./run.sh, or make it with --python {here}"
        )
    missing = [name for name in about["has"] if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise StartError(
            f"{sys.executable} lacks {', '.join(missing)}: start it with the Python that has "
            "them (PYTHON=... ./run.sh), or make the bundle without them in --has"
        )
    code = root / "code"
    content = "\n".join([sys.executable, *(wheel.name for wheel in wheels)])
    for folder, python, paths in (
        (root / _ENV, root / _ENV / "bin" / "python", [code]),
        (root / _SITE, Path(sys.executable), [code, root / _SITE]),
    ):
        complete = folder / _COMPLETE
        if complete.is_file() and complete.read_text() == content:
            return python, paths
    reason = _into_environment(root / _ENV, wheels)
    if reason is None:
        (root / _ENV / _COMPLETE).write_text(content)
        return root / _ENV / "bin" / "python", [code]
    print(f"no virtual environment ({reason}): unpacking {len(wheels)} wheels", flush=True)
    shutil.rmtree(root / _ENV, ignore_errors=True)
    unpack_wheels(wheels, root / _SITE)
    (root / _SITE / _COMPLETE).write_text(content)
    return Path(sys.executable), [code, root / _SITE]


def _into_environment(folder: Path, wheels: list[Path]) -> str | None:
    """Makes a virtual environment with the wheels; returns why it cannot be, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        builder = venv.EnvBuilder(system_site_packages=True, symlinks=True, with_pip=False)
        builder.create(folder)
        python = folder / "bin" / "python"
        command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    # A virtual environment of a virtual environment sees the system's packages, not its parent's.
    Path(own, "machine.pth").write_text("\n".join(_site_folders()) + "\n")
    if not wheels:
        return None
    if find_spec("pip") is None:
        return "this Python has no pip"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    command += ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--ignore-installed"]
    done = subprocess.run(
        [*command, "--no-cache-dir", *map(str, wheels)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_USER": "0"},
    )
    if done.returncode == 0:
        return None
    return f"pip failed: {' '.join(done.stderr.split())[-300:]}"


def _site_folders() -> list[str]:
    folders = [
        *site.getsitepackages(),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    ]
    return [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]


def unpack_wheels(wheels: list[Path], folder: Path) -> None:
    """Unpacks wheels into a folder for `PYTHONPATH`; their programs are left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inner = member.filename.split("/")
                if inner[0].endswith(".data"):
                    if len(inner) < 3 or inner[1] not in {"purelib", "platlib"}:
                        continue
                    member.filename = "/".join(inner[2:])
                if member.filename and not member.is_dir():
                    archive.extract(member, folder)


def main(arguments: list[str]) -> int:
    """Prepares this machine, then becomes the run; returns a status only where that failed."""
    root = Path(__file__).absolute().parent
    try:
        python, paths = prepare(root)
    except (StartError, OSError, zipfile.BadZipFile) as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 1
    known = os.environ.get("PYTHONPATH")
    searched = [*map(str, paths), *([known] if known else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(searched), "PYTHONUNBUFFERED": "1"}
    command = [str(python), "-m", RUN_MODULE, str(root), *arguments]
    os.execve(python, command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
