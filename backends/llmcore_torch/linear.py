"""Linear layers through torch's BLAS, and the dense layout that quantized weights are unpacked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from llmcore.weights.tensor import Tensor as StoredTensor


def dense(tensor: StoredTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Packs a weight of any format as float32 in its own shape: layout ``dense-f32``, version 1."""
    return tensor.dequantize()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = x @ weight.T + bias`` in float32, written straight into ``y``."""
    if bias is None:
        torch.mm(x, weight.t(), out=y)
    else:
        torch.addmm(bias, x, weight.t(), out=y)
