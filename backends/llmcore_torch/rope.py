"""Rotary position embedding by table look-up."""

from __future__ import annotations

import torch


def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    y: torch.Tensor,
    *,
    head_dim: int,
    interleaved: bool,
) -> None:
    """Turns the first ``2 * F`` elements of every head, pair by pair; ``y`` may be ``x``."""
    pairs = cos.shape[1]
    heads, out = (t.view(t.shape[0], t.shape[1] // head_dim, head_dim) for t in (x.float(), y))  # [T, H, head_dim]
    c, s = (table.index_select(0, positions)[:, None] for table in (cos, sin))  # [T, 1, F]
    if interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    a, b = heads[..., first], heads[..., second]
    turned_a, turned_b = a * c - b * s, b * c + a * s  # both before either is written: out may be heads
    out[..., first] = turned_a
    out[..., second] = turned_b
    out[..., 2 * pairs :] = heads[..., 2 * pairs :]
