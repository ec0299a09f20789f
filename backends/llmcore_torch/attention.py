"""Paged attention, one sequence at a time, as plain matrix products."""

from __future__ import annotations

import torch

QUERIES = 64  # rows of scores at a time: they are as long as the sequence


def kv_write(
    k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor, *, head_dim: int, page_size: int
) -> None:
    """Stores the heads of every token at its slot of ``kv`` [pages, 2, page_size, G, head_dim]."""
    slots = slots.long()
    pages, offsets = slots // page_size, slots % page_size
    shape = (k.shape[0], k.shape[1] // head_dim, head_dim)
    kv[pages, 0, offsets] = k.view(shape).to(kv.dtype)
    kv[pages, 1, offsets] = v.view(shape).to(kv.dtype)


def attention(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    query_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    block_tables: torch.Tensor,
    kv: torch.Tensor,
    y: torch.Tensor,
    *,
    head_dim: int,
    kv_heads: int,
    page_size: int,
    scale: float,
) -> None:
    """Attends from each sequence's new rows of ``q`` [T, H · head_dim] to all that its pages hold."""
    rows = zip(query_starts.tolist(), query_lens.tolist(), kv_lens.tolist(), block_tables, strict=True)
    for start, count, length, table in rows:
        if count == 0:
            continue
        pages = table[: (length + page_size - 1) // page_size]
        cached = kv.index_select(0, pages).transpose(0, 1)  # [2, pages, page_size, G, head_dim]
        cached = cached.reshape(2, -1, kv_heads, head_dim)[:, :length]  # [2, L, G, head_dim]
        new = slice(start, start + count)
        y[new] = _attend(q[new], cached, scale=scale)


def _attend(q: torch.Tensor, cached: torch.Tensor, *, scale: float) -> torch.Tensor:
    """One sequence: ``q`` [count, H · head_dim] are its last tokens, ``cached`` [2, L, G, head_dim] all of them.

    On a CPU in float64, some queries at a time: a query's result then does not depend on how the prompt was cut.
    """
    _, length, kv_heads, head_dim = cached.shape
    count = q.shape[0]
    wide = torch.float64 if q.device.type == "cpu" else torch.float32
    queries = q.view(count, kv_heads, -1, head_dim).permute(1, 2, 0, 3).to(wide)  # [G, H / G, count, head_dim]
    keys, values = (side.transpose(0, 1)[:, None].to(wide) for side in cached)  # [G, 1, L, head_dim]
    index = torch.arange(length, device=q.device)
    out = torch.empty_like(queries)
    for start in range(0, count, QUERIES):
        part = slice(start, min(start + QUERIES, count))
        position = index[length - count :][part, None]  # [queries, 1]
        scores = queries[:, :, part] @ keys.transpose(-1, -2) * scale  # [G, H / G, queries, L]
        scores.masked_fill_(index > position, float("-inf"))
        out[:, :, part] = scores.softmax(-1) @ values
    return out.permute(2, 0, 1, 3).reshape(count, -1).to(q.dtype)
