"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

Every scaling variant is a table of cosines and sines by position, made once at load (:mod:`llmcore.layers.rope` has the
formulas), so one kernel serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcore.ops.base import Case, op
from llmcore.ops.cases import indices

if TYPE_CHECKING:
    from torch import Tensor


SHAPES = (  # tokens, heads, head_dim, pairs, positions in the table
    *((0, 2, 16, 8, 4), (1, 1, 2, 1, 1), (1, 9, 64, 32, 50), (7, 3, 32, 16, 9), (33, 2, 128, 64, 40)),
    *((3, 4, 24, 12, 7), (2, 3, 80, 16, 11), (5, 1, 10, 3, 5)),  # the last two turn a part of each head only
)


def _cases() -> Iterator[Case]:
    for tokens, heads, head_dim, pairs, positions in SHAPES:
        for interleaved in (False, True):
            yield Case(
                {"T": tokens, "D": heads * head_dim, "P": positions, "F": pairs},
                {"head_dim": head_dim, "interleaved": interleaved},
                inputs=indices("positions", "T", below="P"),
            )


@op(
    inputs=["x: act[T, D]", "positions: i32[T]"],
    weights=["cos: f32[P, F]", "sin: f32[P, F]"],
    outputs=["y: act[T, D]"],
    inplace={"y": ("x",)},
    cases=_cases,
)
def rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, *, head_dim: int, interleaved: bool) -> Tensor:
    """Rotates the first ``2 * F`` elements of every head by the angles of the token's position.

    Pair ``f`` is elements ``(f, f + F)`` of a head, or ``(2f, 2f + 1)`` where ``interleaved`` (Llama weights as GGUF
    stores them). Elements beyond ``2 * F`` pass unchanged.
    """
    import torch

    pairs = cos.shape[1]
    heads = x.float().view(x.shape[0], x.shape[1] // head_dim, head_dim)  # [T, H, head_dim]
    turned, rest = heads[..., : 2 * pairs], heads[..., 2 * pairs :]
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]  # [T, 1, F]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        rotated = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
        rotated = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    return torch.cat((rotated, rest), dim=-1).view_as(x)
