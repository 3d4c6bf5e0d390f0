"""Whether tensors are those of a module: what is missing, left over, or of another shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from minmo.weights.naming import Shapes

SHOWN_NAMES = 20


def misfits(
    module: str,
    missing: Sequence[str],
    left_over: Sequence[str],
    wrong: Sequence[str],
    shown: int = SHOWN_NAMES,
) -> Iterator[str]:
    """Yields a line for each kind of difference, with so many names at most."""
    if missing:
        yield f"{module} lacks {_listed(missing, shown)}"
    if left_over:
        yield f"{module} has no place for {_listed(left_over, shown)}"
    if wrong:
        yield f"{module} has other shapes: {_listed(wrong, shown)}"


def wrong_shapes(expected: Shapes, state: Mapping[str, Tensor]) -> list[str]:
    """Says of each tensor with another shape what was expected and what was found."""
    return [
        f"{name} expected {_shown(expected[name])}, found {_shown(tuple(tensor.shape))}"
        for name, tensor in state.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]


def _listed(names: Sequence[str], shown: int) -> str:
    more = len(names) - shown
    listed = ", ".join(names[:shown])
    return f"{len(names)}: {listed}{f' and {more} more' if more > 0 else ''}"


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
