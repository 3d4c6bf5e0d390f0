"""Whether tensors are those of a module: missing, left over, of another shape or kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

SHOWN_NAMES = 20


def differences(
    module: str,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    shown: int = SHOWN_NAMES,
) -> Iterator[str]:
    """Yields a line for each kind of difference between a module's tensors and those found.

    Args:
        module: for the lines.
        expected: what its weights consist of (`minmo.weights.naming.stored_tensors`).
        state: what there is.
        shown: how many names a line has at most.
    """
    missing = [name for name in expected if name not in state]
    left_over = [name for name in state if name not in expected]
    yield from misfits(module, missing, left_over, expected, state, shown)


def misfits(
    module: str,
    missing: Sequence[str],
    left_over: Sequence[str],
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    shown: int = SHOWN_NAMES,
) -> Iterator[str]:
    """As `differences`, where others have found what is missing and left over."""
    if missing:
        yield f"{module} lacks {_listed(missing, shown)}"
    if left_over:
        yield f"{module} has no place for {_listed(left_over, shown)}"
    both = [(name, expected[name], state[name]) for name in state if name in expected]
    shapes = [
        f"{name} expected {_shape(wanted)}, found {_shape(found)}"
        for name, wanted, found in both
        if wanted.shape != found.shape
    ]
    if shapes:
        yield f"{module} has other shapes: {_listed(shapes, shown)}"
    kinds = [
        f"{name} expected {_kind(wanted)}, found {_kind(found)}"
        for name, wanted, found in both
        if wanted.is_floating_point() != found.is_floating_point() or found.is_complex()
    ]
    if kinds:
        yield f"{module} has numbers of another kind: {_listed(kinds, shown)}"


def _listed(names: Sequence[str], shown: int) -> str:
    more = len(names) - shown
    listed = ", ".join(names[:shown])
    return f"{len(names)}: {listed}{f' and {more} more' if more > 0 else ''}"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating-point numbers"
    return f"whole numbers ({str(tensor.dtype).removeprefix('torch.')})"
