"""The residual sum, the gated activation, and the choice of rows."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """``y = a + b``; ``y`` may be either."""
    torch.add(a, b, out=y)


def swiglu(gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    """``y = silu(gate) * up``; ``y`` may be either."""
    if y.dtype == torch.float32:
        torch.mul(silu(gate), up, out=y)
    else:
        y.copy_(silu(gate.float()) * up)


def gather(x: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> None:
    """``y[r] = x[rows[r]]``."""
    torch.index_select(x, 0, rows, out=y)
