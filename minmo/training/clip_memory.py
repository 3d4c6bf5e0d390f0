"""What is computed of a clip once, as it would be the same every time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_BYTES_A_MB = 1_000_000


class ClipMemory:
    """Tensors of clips, by the clips' ids.

    Args:
        megabytes: of them at most; those of clips beyond are computed each time.
    """

    def __init__(self, megabytes: float) -> None:
        self._room = int(megabytes * _BYTES_A_MB)
        self._known: dict[str, Tensor] = {}

    def __call__(self, clip: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives of a clip, now or the first time."""
        found = self._known.get(clip)
        if found is None:
            found = make()
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._known[clip] = found
        return found
