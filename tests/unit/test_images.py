"""The Dockerfiles, the requirements that they install, and the check of a container's health."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import grimp
import pytest

from tests.containers import (
    IMAGES,
    NAMES,
    REQUIREMENTS,
    ROOT,
    SERVICES,
    instructions,
    layers,
    locked,
    read,
)
from tools import lock_images

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
PORTS = {
    "orchestrator": 7100,
    "encoder": 7101,
    "llm": 7102,
    "voice-decoder": 7103,
    "gateway": 8080,
}
# What fetches and converts weights is the command line's work.
NOT_IN_SERVICES = {"gguf", "huggingface_hub", "onnx"}
# What a service's code could import, but its work does not: the LLM's front reads the folder of
# weights without the weights, and only the orchestrator's settings say where Redis is.
NEVER_REACHED = {"llm": {"torch", "safetensors"}}
BY_HAND_SECONDS = 60


# --- Dockerfiles


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--no-color", IMAGES / f"{name}.Dockerfile"],
        check=False,
        capture_output=True,
        text=True,
        timeout=BY_HAND_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_as_a_user_without_rights_and_writes_to_volumes_alone(name: str) -> None:
    image = read(name)
    assert image.user == "10001:10001"
    assert image.volumes == {"/tmp", "/var/lib/minmo"}
    assert image.environment["MINMO_HOME"] == "/var/lib/minmo"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_s_image_starts_it_on_its_port_and_asks_for_its_health(name: str) -> None:
    image = read(name)
    assert image.entrypoint == ("python", "-m", f"services.{name.replace('-', '_')}")
    assert image.environment["MINMO_PORT"] == str(PORTS[name])
    assert image.ports == {PORTS[name], 9464}
    assert image.health[-1] == "http://127.0.0.1:$MINMO_METRICS_PORT/readyz"


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_both_images_of_triton_are_started_alike(name: str) -> None:
    image, other = read(name), read("triton")
    assert (image.entrypoint, image.command, image.health) == (
        other.entrypoint,
        other.command,
        other.health,
    )
    assert {8000, 8001, 8002} <= image.ports


@pytest.mark.parametrize("name", NAMES)
def test_images_are_made_of_pinned_images_and_of_files_that_get_into_the_build(name: str) -> None:
    version = PROJECT["version"]
    let_in = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for what, text in instructions(IMAGES / f"{name}.Dockerfile"):
        if what == "ARG" and "minmo/" in text:
            assert text.removesuffix("-cpu").endswith(f":{version}")
        elif what == "ARG" and text.partition("=")[0] in ("PYTHON", "TRITON"):
            assert re.search(r"=\d+\.\d+", text)
        elif what == "FROM" and "/" in text.partition(" AS ")[0]:
            assert "${TRITON}${TRITON_DIGEST}" in text
        elif what == "COPY" and "--from=" not in text:
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(Path(source).is_relative_to(path) for path in let_in)


def test_images_and_requirements_are_for_the_same_python() -> None:
    arguments = dict(
        text.split("=", 1)
        for what, text in instructions(IMAGES / "base.Dockerfile")
        if what == "ARG" and "=" in text
    )
    assert arguments["PYTHON"] == lock_images.SERVICE_PYTHON
    text = (IMAGES / "base.Dockerfile").read_text()
    assert set(re.findall(r"lib/python([\d.]+)/", text)) == {"3.11"}


@pytest.mark.parametrize(("kind", "triton"), [("cpu", "triton-cpu"), ("gpu", "triton")])
def test_one_command_builds_every_image_of_a_kind_behind_those_that_it_stands_on(
    kind: str, triton: str
) -> None:
    done = build(kind, TORCH_INDEX="file:///index")
    assert done.returncode == 0
    files = re.findall(r"deploy/images/([a-z-]+)\.Dockerfile", done.stdout)
    assert files[:3] == ["base", "base", "base"]
    assert files[-1] == triton
    assert {*files, "triton", "triton-cpu"} == set(NAMES)
    tags = re.findall(r"--tag (\S+)", done.stdout)
    version = PROJECT["version"]
    assert tags[:2] == [f"minmo/build:{version}", f"minmo/base:{version}"]
    assert all(tag.endswith(f":{version}-{kind}") for tag in tags[2:])
    assert ("TORCH_INDEX=file:///index" in done.stdout) == (kind == "cpu")


def test_a_build_for_a_cpu_asks_where_pytorch_for_a_cpu_is() -> None:
    done = build("cpu")
    assert done.returncode == 2
    assert "TORCH_INDEX" in done.stderr


def build(kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Builds with an engine that only says what it was asked for."""
    return subprocess.run(
        [IMAGES / "build", kind],
        check=False,
        capture_output=True,
        text=True,
        timeout=BY_HAND_SECONDS,
        env={"PATH": os.environ["PATH"], "ENGINE": "echo", **variables},
    )


# --- what is installed


@pytest.mark.parametrize("name", LOCKS)
def test_requirements_have_hashes_and_the_versions_of_the_project(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())[1:]
    assert len(entries) == len(locked(name))
    assert all("--hash=sha256:" in entry for entry in entries)
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    pins = {
        lock_images.canonical(line): line.partition("==")[2].partition(";")[0] for line in lines
    }
    assert {package: pins.get(package, version) for package, version in locked(name).items()} == (
        locked(name)
    )


@pytest.mark.parametrize("name", [*SERVICES, "triton-cpu"])
def test_an_image_has_what_its_code_imports_and_nothing_that_it_does_not(name: str) -> None:
    inside = {package for layer in layers(name) for package in locked(layer)}
    imported = imports_of(name) - NOT_IN_SERVICES - NEVER_REACHED.get(name, set())
    if name != "orchestrator":
        imported -= {"redis"}
    distributions = packages_distributions()
    # `google` is shared by many; gRPC's own packages need it.
    wanted = {lock_images.canonical(distributions[module][0]) for module in imported - {"google"}}
    assert wanted <= inside
    asked_for = {
        lock_images.canonical(need) for need in lock_images.IMAGES[name].needs
    } - needed_by_others(inside)
    assert asked_for <= wanted


@cache
def graph() -> grimp.ImportGraph:
    """Who imports whom, without what is imported for types alone."""
    return grimp.build_graph(
        "minmo", "services", include_external_packages=True, exclude_type_checking_imports=True
    )


def imports_of(name: str) -> set[str]:
    """The packages of others that an image's code imports, now or later."""
    if name.startswith("triton"):
        model = (ROOT / "deploy" / "triton" / "llm" / "1" / "model.py").read_text()
        starts = set(re.findall(r"^from (minmo\.\S+) import", model, re.MULTILINE))
        starts |= {f"minmo.triton.{module}" for module in ("codec", "host")}
    else:
        starts = {f"services.{name.replace('-', '_')}.__main__"}
    known = graph().modules
    reached = {
        module
        for start in starts & known
        for module in graph().find_upstream_modules(start)
        if module.partition(".")[0] not in ("minmo", "services", *sys.stdlib_module_names)
    }
    return reached


def needed_by_others(packages: set[str]) -> set[str]:
    """Those of installed packages that others of them need."""
    found = set()
    for package in packages:
        try:
            needs = distribution(package).requires or []
        except ModuleNotFoundError:
            # Of the GPU's packages.
            continue
        found |= {lock_images.canonical(need) for need in needs}
    return found


def test_a_package_made_of_a_clean_checkout_has_the_contracts_and_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("v1", "__pycache__", "*.safetensors")
    for name in ("minmo", "services"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    shutil.copytree(ROOT / "protos", source / "protos")
    (source / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "generate_protos.py", source / "tools")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "."],
        check=True,
        cwd=source,
        timeout=BY_HAND_SECONDS,
    )
    (wheel,) = source.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {
        "minmo/v1/conversation_pb2_grpc.py",
        "minmo/presets/8b.toml",
        "services/gateway/page/index.html",
    } <= set(inside)


# --- health


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(200, "ok\n", (0, "")), (503, "no encoder\n", (1, "503 no encoder\n"))],
)
def test_a_container_is_healthy_when_its_service_says_so(
    status: int, body: str, expected: tuple[int, str]
) -> None:
    with answering(status, body) as port:
        assert check(port) == expected


def test_a_container_whose_service_does_not_listen_is_not_healthy() -> None:
    with answering(200, "") as port:
        pass
    status, said = check(port)
    assert status == 1
    assert f"127.0.0.1:{port} does not answer" in said


def check(port: int) -> tuple[int, str]:
    """What the image's check says of a service on a port."""
    command = [*read("encoder").health]
    command[0] = sys.executable
    command[-2] = str(IMAGES / "healthcheck.py")
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=BY_HAND_SECONDS,
        env={"MINMO_METRICS_PORT": str(port)},
    )
    return done.returncode, done.stderr


@contextmanager
def answering(status: int, body: str) -> Iterator[int]:
    """A server that answers /readyz like this; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(BY_HAND_SECONDS)
