"""Linear layers: one matrix product, whatever format the weight has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(
    inputs=["x: act[M, K]"],
    weights=["weight: any[N, K]", "bias?: f32[N]"],
    outputs=["y: act[M, N]"],
)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; the reference takes the weight dequantized to float32."""
    y = x.float() @ weight.float().T
    return y if bias is None else y + bias
