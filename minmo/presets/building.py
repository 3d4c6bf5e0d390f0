"""Building a network without the cost of numbers that nobody looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWING = frozenset(
    {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        init.kaiming_normal_,
        init.kaiming_uniform_,
        init.normal_,
        init.trunc_normal_,
        init.uniform_,
        init.xavier_normal_,
        init.xavier_uniform_,
    }
)


class NothingDrawn(TorchFunctionMode):
    """Leaves parameters as they come, for those who load them at once.

    Drawing a billion numbers takes seconds. Buffers, which are computed and not loaded, are filled
    as ever.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Passes on all calls but those that draw."""
        kwargs = kwargs or {}
        if func in _DRAWING:
            drawn = args[0] if args else kwargs["tensor"]
            if isinstance(drawn, nn.Parameter) or drawn.is_meta:
                return drawn
        return func(*args, **kwargs)


class SizesOnly(NothingDrawn):
    """Gives parameters no memory: a network of any size is built in no time, to be measured.

    Like `torch.device("meta")`, but buffers stay real: computing those without memory makes PyTorch
    import its compiler, which takes longer than all the rest.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Moves what parameters are made of."""
        if func is torch.empty:
            kwargs = {"device": "meta", **(kwargs or {})}
            # Layers pass on the device that they were given, which is none.
            kwargs["device"] = kwargs["device"] or "meta"
        return super().__torch_function__(func, types, args, kwargs)
