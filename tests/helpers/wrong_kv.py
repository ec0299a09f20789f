"""Deliberately wrong kernels over the torch backend's pages."""

from __future__ import annotations

from typing import Any

import torch

from llmcore_torch import attention as right


def write_swaps(k: Any, v: Any, slots: Any, kv: Any, **attrs: Any) -> None:
    right.kv_write(v, k, slots, kv, **attrs)


def write_next_slot(k: Any, v: Any, slots: Any, kv: Any, **attrs: Any) -> None:
    right.kv_write(k, v, slots + 1, kv, **attrs)


def write_elsewhere_too(k: Any, v: Any, slots: Any, kv: Any, **attrs: Any) -> None:
    right.kv_write(k, v, slots, kv, **attrs)
    kv[0, 0, 0] = 0


def _changed(change: Any) -> Any:
    def attention(q: Any, starts: Any, counts: Any, lens: Any, tables: Any, kv: Any, y: Any, **attrs: Any) -> None:
        q, lens, tables, attrs = change(q, lens, tables, attrs)
        right.attention(q, starts, counts, lens, tables, kv, y, **attrs)

    return attention


see_less = _changed(lambda q, lens, tables, attrs: (q, (lens - 1).clamp(min=1), tables, attrs))
see_more = _changed(lambda q, lens, tables, attrs: (q, lens + 1, tables, attrs))
pages_in_order = _changed(lambda q, lens, tables, attrs: (q, lens, tables.sort(-1).values, attrs))
unscaled = _changed(lambda q, lens, tables, attrs: (q, lens, tables, {**attrs, "scale": 1.0}))


def not_causal(
    q: Any,
    starts: Any,
    counts: Any,
    lens: Any,
    tables: Any,
    kv: Any,
    y: Any,
    *,
    head_dim: int,
    kv_heads: int,
    **attrs: Any,
) -> None:
    """Every new token sees all of its sequence: right for decode, wrong for prefill."""
    for start, count, length, table in zip(starts.tolist(), counts.tolist(), lens.tolist(), tables, strict=True):
        for row in range(start, start + count):
            one = torch.tensor([0]), torch.tensor([1]), torch.tensor([length])
            right.attention(
                q[row : row + 1], *one, table[None], kv, y[row : row + 1], head_dim=head_dim, kv_heads=kv_heads, **attrs
            )


def heads_dealt_out(q: Any, *rest: Any, head_dim: int, kv_heads: int, **attrs: Any) -> None:
    """Head h reads key head h % kv_heads in place of h // (heads / kv_heads)."""
    *index, kv, y = rest
    order = torch.arange(q.shape[1] // head_dim).view(-1, kv_heads).T.flatten()
    shuffled = q.view(len(q), len(order), head_dim)[:, order].reshape(q.shape)
    out = torch.empty_like(y)
    right.attention(shuffled, *index, kv, out, head_dim=head_dim, kv_heads=kv_heads, **attrs)
    y.view(len(y), len(order), head_dim)[:, order] = out.view(len(y), len(order), head_dim)
