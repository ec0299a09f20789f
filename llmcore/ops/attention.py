"""Paged attention and the write that feeds it: one pair of ops over a ragged batch.

Prefill, chunked prefill and decode are one op: sequence ``s`` of the step has ``query_lens[s]`` new tokens, rows
``query_starts[s] …`` of ``q``, which are the last of its ``kv_lens[s]`` tokens in the cache. The cache is pages of
``page_size`` tokens (Kwon et al. 2023, arXiv:2309.06180); ``block_tables[s, i]`` is the page that holds tokens
``i * page_size …`` of sequence ``s``, and slot ``page * page_size + offset`` names one token's place.

The layout of a page belongs to the backend; both ops bind from the same one (group ``"kv"``). The references use
``kv[page, 0 = key / 1 = value, offset, head, element]`` in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(
    inputs=["k: act[T, G]", "v: act[T, G]", "slots: i32[T]"],
    states=["kv: state"],
)
def kv_write(k: Tensor, v: Tensor, slots: Tensor, kv: Tensor, *, head_dim: int, page_size: int) -> None:
    """Stores the key and value heads of every token in its slot."""
    pages, offsets = slots.long() // page_size, slots.long() % page_size
    kv[pages, 0, offsets] = k.float().view(k.shape[0], -1, head_dim)
    kv[pages, 1, offsets] = v.float().view(v.shape[0], -1, head_dim)


@op(
    inputs=[
        "q: act[T, D]",
        "query_starts: i32[S]",
        "query_lens: i32[S]",
        "kv_lens: i32[S]",
        "block_tables: i32[S, B]",
    ],
    states=["kv: state"],
    outputs=["y: act[T, D]"],
)
def attention(
    q: Tensor,
    query_starts: Tensor,
    query_lens: Tensor,
    kv_lens: Tensor,
    block_tables: Tensor,
    kv: Tensor,
    *,
    head_dim: int,
    kv_heads: int,
    page_size: int,
    scale: float,
) -> Tensor:
    """Causal softmax attention of each new token over its sequence's cached tokens, itself included; GQA where heads > kv_heads."""
    import torch

    y = torch.zeros_like(q, dtype=torch.float32)
    heads = q.shape[1] // head_dim
    for start, count, length, table in zip(
        query_starts.tolist(), query_lens.tolist(), kv_lens.tolist(), block_tables.long(), strict=True
    ):
        if count == 0:
            continue
        rows = slice(start, start + count)
        pages = table[: (length + page_size - 1) // page_size]
        cached = kv[pages].transpose(0, 1).reshape(2, -1, kv_heads, head_dim)[:, :length]  # [2, L, G, head_dim]
        keys, values = cached.repeat_interleave(heads // kv_heads, dim=2).transpose(1, 2)  # [H, L, head_dim]
        queries = q[rows].float().view(count, heads, head_dim).transpose(0, 1)  # [H, count, head_dim]
        scores = queries @ keys.transpose(1, 2) * scale  # [H, count, L]
        position = torch.arange(length - count, length, device=q.device)[:, None]
        scores.masked_fill_(torch.arange(length, device=q.device) > position, float("-inf"))
        y[rows] = (scores.softmax(-1) @ values).transpose(0, 1).reshape(count, -1)
    return y
