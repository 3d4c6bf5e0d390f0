"""Counts how often the host asks for numbers: on a GPU it waits each time."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Readings(TorchDispatchMode):
    """Within it, lists made of tensors and single numbers that were taken out are counted.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._patch = pytest.MonkeyPatch()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select")
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Self:
        to_list = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.count += 1
            with torch.utils._python_dispatch._disable_current_modes():
                return to_list(tensor)

        self._patch.setattr(Tensor, "tolist", counted)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._patch.undo()
