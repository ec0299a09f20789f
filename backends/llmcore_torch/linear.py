"""Linear layers through torch's BLAS, and the dense layout that quantized weights are unpacked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from llmcore.weights.tensor import Tensor as StoredTensor

BLOCK = 16  # rows


def dense(tensor: StoredTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Packs a weight of any format as float32 in its own shape: layout ``dense-f32``, version 1."""
    return tensor.dequantize()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = x @ weight.T + bias`` in float32.

    A few rows are computed as part of a block of ``BLOCK``: BLAS sums in another order for a single row than for many,
    and a row's result should not depend on its company.
    """
    rows, wide, own = x.shape[0], x.float(), y.dtype == torch.float32
    if rows >= BLOCK or x.device.type != "cpu":
        product = torch.mm(wide, weight.t(), out=y) if own else torch.mm(wide, weight.t())
    else:
        block = wide.new_zeros(BLOCK, x.shape[1])
        block[:rows] = wide
        product = torch.mm(block, weight.t())[:rows]
    if bias is not None:
        product.add_(bias)
    if product is not y:
        y.copy_(product)
