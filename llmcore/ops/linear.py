"""Linear layers: one matrix product, whatever format the weight has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcore.ops.base import Case, op

if TYPE_CHECKING:
    from torch import Tensor


SHAPES = (  # M, K, N: widths that every format's blocks fit (256), most of them (32), and only F32, F16 and BF16
    *((0, 256, 8), (1, 256, 1), (1, 256, 33), (2, 512, 17), (3, 256, 64), (7, 768, 40), (33, 512, 24), (2, 256, 1000)),
    *((1, 32, 16), (2, 96, 7), (5, 576, 48), (33, 64, 31)),
    *((1, 1, 1), (3, 33, 5), (8, 100, 32)),
)


def linear_cases(*dims: str) -> Iterator[Case]:
    """The shapes of a linear layer under the names ``dims`` for rows, inputs and outputs; half of them with a bias."""
    for index, shape in enumerate(SHAPES):
        yield Case(dict(zip(dims, shape, strict=True)), present=("bias",) if index % 2 else ())


@op(
    inputs=["x: act[M, K]"],
    weights=["weight: any[N, K]", "bias?: f32[N]"],
    outputs=["y: act[M, N]"],
    cases=lambda: linear_cases("M", "K", "N"),
)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; the reference takes the weight dequantized to float32.

    Where it makes logits, ``y`` is float32 whatever activations are.
    """
    y = x.float() @ weight.float().T
    return y if bias is None else y + bias
