"""Reading and writing pages of the KV cache from within a kernel; :mod:`llmcore_triton.layout` has their layout.

Every function takes the sizes of the cache as ``constexpr`` parameters: strides are then known at compile time, and the
compiler proves that its loads are as wide as they can be.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmcore.cache.layout import INT8_GROUP, INT8_LARGEST
from llmcore_triton import layout

GROUP = tl.constexpr(INT8_GROUP)
LARGEST = tl.constexpr(INT8_LARGEST)
NEAREST = tl.constexpr(1.5 * 2**23)  # added to a small float32 it leaves no bits for a fraction: rounds to even
KEY, VALUE = tl.constexpr(0), tl.constexpr(1)


def sizes(head_dim: int, kv_heads: int, page_size: int, kv: torch.Tensor) -> dict[str, Any]:
    """The ``constexpr`` arguments of a kernel over the pages ``kv``; strides in elements of ``kv``."""
    quantized = kv.dtype == torch.int8
    return {
        "HEAD_DIM": head_dim,
        "DIM": max(16, triton.next_power_of_2(head_dim)),
        "KV_HEADS": kv_heads,
        "PAGE_SIZE": page_size,
        "HEAD_STRIDE": layout.head_bytes(head_dim, page_size) if quantized else page_size * head_dim,
        "SCALES": layout.code_bytes(head_dim, page_size) if quantized else 0,
    }


def scales_of(kv: torch.Tensor) -> torch.Tensor:
    """The memory of int8 pages as the float16 numbers that scales are; other pages as they are."""
    return kv.view(torch.float16) if kv.dtype == torch.int8 else kv


@triton.jit
def load_pages(table, start, end, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """The pages of the ``BLOCK_N`` tokens from ``start`` on, int32 ``[BLOCK_N]``; ``start`` is a multiple of that.

    0 for tokens at ``end`` or beyond: what a table holds for them need not name a page.
    """
    if PAGE_SIZE % BLOCK_N == 0:
        return tl.zeros([BLOCK_N], tl.int32) + tl.load(table + start // PAGE_SIZE, mask=start < end, other=0)
    tokens = start + tl.arange(0, BLOCK_N)
    return tl.load(table + tokens // PAGE_SIZE, mask=tokens < end, other=0)


@triton.jit
def load_heads(
    kv,
    scales,
    pages,
    places,
    there,
    head,
    SIDE: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Head ``head`` of tokens at ``places`` of ``pages``, ``[BLOCK_N, DIM]``: as stored, or float32 out of int8.

    Elements beyond ``HEAD_DIM``, and if ``MASKED`` tokens that are not ``there``, are 0: what multiplies them is 0 too,
    but 0 times what lies there may be NaN, for it may never have been written.
    """
    index = (pages.to(tl.int64) * 2 + SIDE) * KV_HEADS + head  # [BLOCK_N]
    element = tl.arange(0, DIM)[None, :]
    at = kv + ((index * HEAD_STRIDE + places * HEAD_DIM)[:, None] + element)
    if MASKED:
        kept = load_where(at, there[:, None], element, HEAD_DIM, DIM)
    else:
        kept = load_within(at, element, HEAD_DIM, DIM)
    if SCALES > 0:
        BLOCK_N: tl.constexpr = pages.shape[0]
        GROUPS: tl.constexpr = (HEAD_DIM + GROUP - 1) // GROUP
        group = tl.arange(0, DIM // GROUP)[None, :]
        at = scales + ((index * (HEAD_STRIDE // 2) + SCALES // 2 + places * GROUPS)[:, None] + group)
        if MASKED:
            scale = load_where(at, there[:, None], group, GROUPS, DIM // GROUP)
        else:
            scale = load_within(at, group, GROUPS, DIM // GROUP)
        wide = tl.broadcast_to(scale.to(tl.float32)[:, :, None], [BLOCK_N, DIM // GROUP, GROUP])
        kept = kept.to(tl.float32) * tl.reshape(wide, [BLOCK_N, DIM])
    return kept


@triton.jit
def load_within(at, column, COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    """What lies ``at``; 0 from column ``COLUMNS`` on. Nothing is compared where nothing is padded."""
    if COLUMNS == PADDED:
        return tl.load(at)
    return tl.load(at, mask=column < COLUMNS, other=0)


@triton.jit
def load_where(at, rows, column, COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    """Like :func:`load_within`, and 0 but where ``rows``."""
    if COLUMNS == PADDED:
        return tl.load(at, mask=rows, other=0)
    return tl.load(at, mask=rows & (column < COLUMNS), other=0)


@triton.jit
def store_heads(
    x,
    kv,
    scales,
    slots,
    heads,
    mine,
    SIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Stores row ``i`` of ``x`` as head ``heads[i]`` of the token in ``slots[i]``, where ``mine[i]``.

    ``x`` is float32 ``[rows, DIM]``, 0 beyond ``HEAD_DIM``.
    """
    index = (((slots // PAGE_SIZE).to(tl.int64) * 2 + SIDE) * KV_HEADS + heads)[:, None]
    place = (slots % PAGE_SIZE)[:, None]
    element = tl.arange(0, DIM)[None, :]
    at = kv + index * HEAD_STRIDE + place * HEAD_DIM + element
    here = mine[:, None] & (element < HEAD_DIM)
    if SCALES > 0:
        GROUPS: tl.constexpr = (HEAD_DIM + GROUP - 1) // GROUP
        codes, scale = quantize(x)
        group = tl.arange(0, DIM // GROUP)[None, :]
        to = scales + index * (HEAD_STRIDE // 2) + SCALES // 2 + place * GROUPS + group
        tl.store(to, scale, mask=mine[:, None] & (group < GROUPS))
        tl.store(at, codes, mask=here)
    else:
        tl.store(at, x.to(kv.dtype.element_ty), mask=here)


@triton.jit
def quantize(x):
    """int8 codes and float16 scales of ``x`` [rows, columns], bit by bit as ``KV_DTYPES["int8"]`` has them."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    x = tl.reshape(x, [ROWS, COLUMNS // GROUP, GROUP])
    broken = tl.sum(x * 0, axis=2)  # NaN where one of them is no number, which a maximum would pass over; else 0
    scale = tl.div_rn(tl.max(tl.abs(x), axis=2) + broken, LARGEST * 1.0).to(tl.float16)
    wide = scale.to(tl.float32)
    inverse = tl.div_rn(1.0, tl.where(wide == 0, 1.0, wide))  # a scale is 0 where all codes round to 0 in any case
    # Bounds come first: between product and sum they keep the compiler from making one fma of them, which rounds once.
    bounded = tl.minimum(tl.maximum(x * inverse[:, :, None], -LARGEST * 1.0), LARGEST * 1.0)
    codes = ((bounded + NEAREST) - NEAREST).to(tl.int8)
    return tl.reshape(codes, [ROWS, COLUMNS]), scale
