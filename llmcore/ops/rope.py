"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

Every scaling variant is a table of cosines and sines by position, made once at load (:mod:`llmcore.layers.rope` has the
formulas), so one kernel serves them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(
    inputs=["x: act[T, D]", "positions: i32[T]"],
    weights=["cos: f32[P, F]", "sin: f32[P, F]"],
    outputs=["y: act[T, D]"],
    inplace={"y": ("x",)},
)
def rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, *, head_dim: int, interleaved: bool) -> Tensor:
    """Rotates the first ``2 * F`` elements of every head by the angles of the token's position.

    Pair ``f`` is elements ``(f, f + F)`` of a head, or ``(2f, 2f + 1)`` where ``interleaved`` (Llama weights as GGUF stores them).
    Elements beyond ``2 * F`` pass unchanged.
    """
    import torch

    pairs = cos.shape[1]
    heads = x.float().view(x.shape[0], -1, head_dim)  # [T, H, head_dim]
    turned, rest = heads[..., : 2 * pairs], heads[..., 2 * pairs :]
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]  # [T, 1, F]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        rotated = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
        rotated = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    return torch.cat((rotated, rest), dim=-1).view_as(x)
