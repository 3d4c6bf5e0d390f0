"""Generate `minmo/v1` (messages, gRPC stubs, type stubs) from `protos/`.

Run by `pip install` (see setup.py) and by `make protos`. The generated package is not committed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(root: Path = ROOT) -> Path:
    """Write `minmo/v1` under `root` and return it. Raises RuntimeError if protoc refuses."""
    protos = root / "protos"
    package = root / "minmo" / "v1"
    sources = sorted(protos.glob("minmo/v1/*.proto"))
    # Made beside and put in place at once: a failure leaves what was there.
    with tempfile.TemporaryDirectory(dir=root / "minmo") as folder:
        made = Path(folder)
        _compile(protos, sources, made)
        code = made / "minmo" / "v1"
        (code / "__init__.py").write_text('"""Generated from protos/minmo/v1. Do not edit."""\n')
        shutil.rmtree(package, ignore_errors=True)
        code.rename(package)
    return package


def _compile(protos: Path, sources: list[Path], root: Path) -> None:
    arguments = [
        "protoc",
        f"-I{protos}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
    ]
    # The typed stubs are for the type checker alone: a plain installation does without.
    if importlib.util.find_spec("mypy_protobuf") is not None:
        for plugin in ("mypy", "mypy_grpc"):
            executable = Path(sys.executable).parent / f"protoc-gen-{plugin}"
            arguments += [f"--plugin={executable}", f"--{plugin}_out=quiet:{root}"]
    if protoc.main(arguments + [str(source) for source in sources]) != 0:
        raise RuntimeError(f"protoc could not compile {protos}; its message is above")


if __name__ == "__main__":
    print(f"generated {generate()}")
