"""Generates the gRPC code before the package is built; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "tools"))


class BuildWithProtos(build_py):
    """`build_py`, with `minmo/v1` generated from `protos/` first."""

    def run(self) -> None:
        from generate_protos import generate

        generate()
        # Packages were looked for before this one was there.
        if "minmo.v1" not in self.packages:
            self.packages.append("minmo.v1")
        super().run()


setup(cmdclass={"build_py": BuildWithProtos})
