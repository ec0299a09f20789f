"""Paged attention and the write that feeds it: one pair of ops over a ragged batch.

Prefill, chunked prefill and decode are one op: sequence ``s`` of the step has ``query_lens[s]`` new tokens, rows
``query_starts[s] …`` of ``q``, which are the last of its ``kv_lens[s]`` tokens in the cache. The cache is pages of
``page_size`` tokens (Kwon et al. 2023, arXiv:2309.06180); ``block_tables[s, i]`` is the page that holds tokens
``i * page_size …`` of sequence ``s``, and slot ``page * page_size + offset`` names one token's place.

The layout of a page belongs to the backend; both ops bind from the same one (group ``"kv"``). The references use
``kv[page, 0 = key / 1 = value, offset, head, element]`` in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from llmcore.ops.base import Case, op
from llmcore.ops.cases import RAGGED, SIDE_BY_SIDE, paged_slots

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

HEADS = ((1, 1, 16), (3, 1, 32), (8, 1, 24), (9, 3, 64), (4, 4, 128))  # query heads, key heads, head_dim


def slots_of(dims: Mapping[str, int], rng: np.random.Generator, *, page_size: int) -> dict[str, Any]:
    """The ``slots`` of ``T`` tokens, see :func:`llmcore.ops.cases.paged_slots`."""
    return {"slots": paged_slots(dims["T"], page_size, rng)}


def _kv_write_cases() -> Iterator[Case]:
    """Each case is checked by reading every written page back with the same backend's attention."""
    for tokens, page_size, kv_heads, head_dim in ((0, 16, 2, 16), (1, 16, 1, 64), (7, 1, 3, 32), (33, 16, 3, 64)):
        yield Case(
            {"T": tokens, "G": kv_heads * head_dim},
            {"head_dim": head_dim, "page_size": page_size},
            inputs=partial(slots_of, page_size=page_size),
        )


def _attention_cases() -> Iterator[Case]:
    """The cache is filled by the same backend's ``kv_write`` first: only the two together mean something."""
    shaped = [*zip(RAGGED, cycle(HEADS), strict=False), (SIDE_BY_SIDE, (9, 3, 64))]
    for (note, batch), (heads, kv_heads, head_dim) in shaped:
        lens = batch.query_lens
        yield Case(
            {"T": sum(lens), "D": heads * head_dim, "S": len(lens), "B": batch.table_width},
            {"head_dim": head_dim, "kv_heads": kv_heads, "page_size": batch.page_size, "scale": head_dim**-0.5},
            inputs=batch,
            note=note,
            one_each=bool(lens) and set(lens) == {1},
        )


@op(
    inputs=["k: act[T, G]", "v: act[T, G]", "slots: i32[T]"],
    states=["kv: state"],
    cases=_kv_write_cases,
)
def kv_write(k: Tensor, v: Tensor, slots: Tensor, kv: Tensor, *, head_dim: int, page_size: int) -> None:
    """Stores the key and value heads of every token in its slot."""
    pages, offsets = slots.long() // page_size, slots.long() % page_size
    heads = (k.shape[0], k.shape[1] // head_dim, head_dim)
    kv[pages, 0, offsets] = k.float().view(heads)
    kv[pages, 1, offsets] = v.float().view(heads)


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
    cases=_attention_cases,
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
    """Causal softmax attention of each new token over its sequence's cached tokens, itself included.

    Query heads share key heads in equal runs (GQA): head ``h`` reads key head ``h // (heads / kv_heads)``.
    """
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
