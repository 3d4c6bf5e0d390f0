"""Implementations that others published, to compare ours with on the same weights.

Their packages import a whole application at once. Only the files with the networks are wanted, so
packages are entered without running their `__init__`, and libraries that read audio are left out.
"""

import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


def published(name: str) -> ModuleType:
    """A module such as `chatterbox.models.s3gen.flow`, with nothing around it."""
    _leave_out("librosa", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
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


def _leave_out(*names: str) -> None:
    for name in names:
        if name not in sys.modules:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module
