"""The thread budget of a process, so that several share few cores without fighting."""

from __future__ import annotations

import os
import sys

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def limit(threads: int) -> None:
    """Lets numeric libraries of this process, and of its children, use so many threads.

    Libraries that are loaded later read the environment; PyTorch, if it is there already, is told.
    """
    for variable in _VARIABLES:
        os.environ[variable] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
