"""Dockerfiles as far as a machine without a container engine can take them.

`read` says what an image starts, as whom, and with which variables. `assembled` is its Python
environment, of the packages that are installed here: exactly those that its requirement files name.
`contained` runs a command in it as a container would: in a file system of its own that is read-only
but for `/tmp`, in a network of its own, as the image's user, without any rights.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

from minmo.weights import home

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "deploy" / "images"
REQUIREMENTS = IMAGES / "requirements"
NAMES = sorted(path.name.removesuffix(".Dockerfile") for path in IMAGES.glob("*.Dockerfile"))
"""All that have a Dockerfile."""
SERVICES = ("encoder", "llm", "voice-decoder", "orchestrator", "gateway")

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# What of this machine's file system a container sees, read-only.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc")
_LOOPBACK_UP = """
import fcntl, socket, struct
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""
_SCRIPT = r"""
set -eu
"$PYTHON" -c "$LOOPBACK_UP"
root=$1 user=$2 environment=$3 weights=$4
shift 4
mount -t tmpfs -o mode=755 root "$root"
# First, as what is shown may lie in it.
mkdir "$root/tmp"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
show() { # FROM TO, read-only
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
}
for path in $SYSTEM; do
    if [ -L "$path" ]; then cp -P "$path" "$root$path"; else show "$path" "$path"; fi
done
for path in $SHOWN; do show "${path%%:*}" "${path#*:}"; done
if [ -d "$root/opt/triton" ]; then
    ln -s /opt/triton/pytriton/tritonserver "$root/opt/tritonserver"
fi
show "$environment" /opt/minmo
show "$weights" /var/lib/minmo
mkdir "$root/dev" "$root/proc"
mount --bind /proc "$root/proc"
for name in null zero full random urandom; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=256m shm "$root/dev/shm"
mount -o remount,ro "$root"
cd "$root"
exec chroot "$root" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \
    --no-new-privs --inh-caps=-all --bounding-set=-all /usr/bin/env -i "$@"
"""


@dataclass(frozen=True)
class Image:
    """What the last stage of a Dockerfile, with all that it stands on, says of a container."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = "0:0"
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: frozenset[int] = frozenset()
    volumes: frozenset[str] = frozenset()
    health: tuple[str, ...] = ()


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions in order, with their arguments in one line."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    split = (line.split(maxsplit=1) for line in lines if line.strip())
    return [(name.upper(), rest) for name, rest in split]


@cache
def read(name: str) -> Image:
    """The image of a Dockerfile by its name; `base` and `torch` are stages of the same file."""
    path = IMAGES / f"{'base' if name == 'torch' else name}.Dockerfile"
    arguments: dict[str, str] = {}
    stages: dict[str, Image] = {}
    stage = ""
    for what, text in instructions(path):
        if what == "ARG" and not stages:
            key, _, value = text.partition("=")
            arguments[key] = value
        elif what == "FROM":
            below, _, called = text.partition(" AS ")
            stage = called or name
            below = arguments.get(below.removeprefix("${").removesuffix("}"), below)
            stages[stage] = stages.get(below) or _below(below)
        elif stages:
            stages[stage] = _with(stages[stage], what, text)
    return stages[name]


def _below(reference: str) -> Image:
    known = re.fullmatch(r"minmo/(base|torch):.*", reference)
    # Python's images and NVIDIA's: the programs of the system.
    system = Image(environment={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    return read(known[1]) if known else system


def _with(image: Image, what: str, text: str) -> Image:
    changed = dict(vars(image))
    if what == "ENTRYPOINT":
        # Docker forgets the command of the image below.
        changed |= {"entrypoint": tuple(json.loads(text)), "command": ()}
    elif what == "CMD":
        changed["command"] = tuple(json.loads(text))
    elif what == "USER":
        changed["user"] = text
    elif what == "ENV":
        variables = dict(image.environment)
        for pair in shlex.split(text):
            key, _, value = pair.partition("=")
            variables[key] = value.replace("$PATH", image.environment.get("PATH", ""))
        changed["environment"] = variables
    elif what == "EXPOSE":
        changed["ports"] = image.ports | {int(port) for port in text.split()}
    elif what == "VOLUME":
        changed["volumes"] = image.volumes | set(json.loads(text))
    elif what == "HEALTHCHECK":
        _, _, command = text.partition(" CMD ")
        changed["health"] = tuple(json.loads(command)) if command else ()
    return Image(**changed)


def locked(name: str) -> dict[str, str]:
    """The packages of a file of requirements, with their versions."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def layers(name: str) -> tuple[str, ...]:
    """The files of requirements that make up the environment of one of MinMo's own images."""
    below = next(
        text
        for what, text in reversed(instructions(IMAGES / f"{name}.Dockerfile"))
        if what == "FROM"
    )
    return ("base", name) if below == "${BASE}" else ("base", "torch", "torch-cuda", name)


def assembled(name: str, folder: Path) -> Path:
    """Makes the Python environment that an image has in `/opt/minmo`.

    It is made of links to the packages that are installed here, and the source tree. What only a
    GPU needs is not here, and so not there.

    Args:
        name: of the image.
        folder: a new one.
    """
    venv.create(folder, symlinks=True)
    site = folder / "lib" / _PYTHON / "site-packages"
    for package in (package for layer in layers(name) for package in locked(layer)):
        if package == "triton" or package.startswith(("nvidia-", "cuda-")):
            continue
        _link(package, site)
    for source in ("minmo", "services"):
        (site / source).symlink_to(ROOT / source)
    shutil.copy(IMAGES / "healthcheck.py", folder)
    (folder / "deploy").mkdir()
    shutil.copytree(ROOT / "deploy" / "triton", folder / "deploy" / "triton")
    folder.chmod(0o755)
    return folder


def _link(package: str, site: Path) -> None:
    found = distribution(package)
    tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
    for top in tops - {"__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))


def need_root() -> None:
    """Skips the test where nobody may make a file system of its own."""
    tools = ("unshare", "nsenter", "setpriv", "chroot", "mount")
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in tools):
        pytest.skip("only root can start a process as a container would, with util-linux")
    namespaces = ["unshare", "--mount", "--net", "true"]
    if subprocess.run(namespaces, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody have a file system and a network of their own")


@contextmanager
def contained(
    image: Image,
    environment: Path,
    root: Path,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    shown: Mapping[str, Path] | None = None,
    beside: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Runs a command as in a container of an image; ends it, if it still runs.

    Its network is a loopback alone, and MinMo's home is there read-only.

    Args:
        image: whose user and variables it has.
        environment: what `assembled` made.
        root: an empty folder, where its file system is put together.
        command: what to run.
        variables: more of them.
        shown: further folders of this machine that it may read, by their paths in there.
        beside: process in whose network it is, if that is not a new one.
    """
    # Where the links of the environment lead.
    behind = (Path(sys.base_prefix), Path(pytest.__file__).parent.parent, ROOT)
    paths = {str(path): path for path in behind if not path.is_relative_to("/usr")}
    paths |= shown or {}
    settings = [f"{key}={value}" for key, value in (image.environment | dict(variables)).items()]
    script = ["sh", "-c", _SCRIPT, "sh", str(root), image.user, str(environment), str(home.home())]
    network = (
        ["unshare", "--net"] if beside is None else ["nsenter", f"--net=/proc/{beside}/ns/net"]
    )
    process = subprocess.Popen(
        [*network, "unshare", "--mount", *script, *settings, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "LOOPBACK_UP": _LOOPBACK_UP,
            "SYSTEM": " ".join(path for path in _SYSTEM if Path(path).exists()),
            "SHOWN": " ".join(f"{path}:{inside}" for inside, path in paths.items()),
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
