"""Counts the floating-point operations of a forward on torch's meta device: shapes only, no weight is read or made.

A multiplication and an addition are two operations. Convolutions, matrix products and attention count, as in
`torch.utils.flop_counter`; elementwise work does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def forward_flops(make: Callable[[], nn.Module], call: Callable[[Any], Any]) -> float | None:
    """Operations of one forward; None for a model that looks at values, which the meta device does not have.

    Args:
        make: builds the model; called where new tensors land on the meta device.
        call: runs it once, on inputs made there too.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.device("meta"), torch.no_grad():
            model = make().eval()
            with counter:
                call(model)
    except Exception:  # each library has its own way to refuse; whether the model is right is asked where it is built
        return None
    return float(counter.get_total_flops())
