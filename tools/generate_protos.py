"""Generate `minmo/v1` (messages, gRPC stubs, type stubs) from `protos/`.

Run by `pip install` (see setup.py) and by `make protos`. The generated package is not committed.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(root: Path = ROOT) -> Path:
    """Write `minmo/v1` under `root` and return it. Raises RuntimeError if protoc refuses."""
    protos = root / "protos"
    package = root / "minmo" / "v1"
    sources = sorted(protos.glob("minmo/v1/*.proto"))
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Generated from protos/minmo/v1. Do not edit."""\n')
    arguments = [
        "protoc",
        f"-I{protos}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
    ]
    # The typed stubs are for the type checker alone: a plain installation does without.
    bin_folder = Path(sys.executable).parent
    for plugin in ("mypy", "mypy_grpc"):
        executable = bin_folder / f"protoc-gen-{plugin}"
        if executable.exists():
            arguments += [f"--plugin={executable}", f"--{plugin}_out=quiet:{root}"]
    if protoc.main(arguments + [str(source) for source in sources]) != 0:
        raise RuntimeError(f"protoc could not compile {protos}; its message is above")
    return package


if __name__ == "__main__":
    print(f"generated {generate()}")
