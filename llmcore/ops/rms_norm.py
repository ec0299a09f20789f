"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(
    inputs=["x: act[M, D]"],
    weights=["weight: f32[C]"],
    outputs=["y: act[M, D]"],
    inplace={"y": ("x",)},
)
def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Each group of ``C`` consecutive elements divided by its RMS, times ``weight``.

    ``C == D`` normalises a hidden state; ``C`` = head size normalises every query or key head by itself (Qwen3).
    """
    groups = x.float().view(x.shape[0], -1, weight.shape[0])  # [M, D / C, C]
    scale = (groups.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (groups * scale * weight).view_as(x)
