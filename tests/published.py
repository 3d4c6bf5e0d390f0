"""Implementations that others published, to compare ours with on the same weights.

Their packages import a whole application at once. Only the files with the networks are wanted, so
packages are entered without running their `__init__`, and libraries that read audio are left out.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


def published(name: str) -> ModuleType:
    """A module such as `chatterbox.models.s3gen.flow`, with nothing around it."""
    left_out = ("librosa", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
    with _without(*left_out):
        parts = name.split(".")
        for length in range(1, len(parts)):
            _enter(".".join(parts[:length]))
        return importlib.import_module(name)


@cache
def _enter(package: str) -> None:
    top, *below = package.split(".")
    if not below:
        spec = importlib.util.find_spec(top)
        assert spec is not None and spec.submodule_search_locations, f"{top} is not installed"
        folder = Path(spec.submodule_search_locations[0])
    else:
        folder = Path(sys.modules[".".join([top, *below[:-1]])].__path__[0]) / below[-1]
    module = ModuleType(package)
    module.__path__ = [str(folder)]
    sys.modules[package] = module


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Empty modules stand for these meanwhile; others ask later whether they are installed."""
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
