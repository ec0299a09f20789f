"""What follows the three projections of attention, in one kernel: head norms, RoPE, and the write into the cache.

The parts would read and write queries and keys once each; here they go through registers once. A program takes some
heads of one kind (queries, keys or values) of one token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore.registry.node import NodeView
from llmcore_triton.configs import Config, config, warps
from llmcore_triton.kv_pages import KEY, VALUE, scales_of, sizes, store_heads
from llmcore_triton.linear import many
from llmcore_triton.linear_qkv import project3


def norms_heads(node: NodeView) -> str | None:
    """Why :func:`qkv_finish` cannot end ``node``, or None."""
    if node.present & {"nq", "nk"} and node.dims["C"] != node.attrs["head_dim"]:
        return f"norms of {node.dims['C']} elements; only whole heads, of {node.attrs['head_dim']}, are normed"
    return None


@triton.jit
def load_tile(x, row, heads, element, count, HEAD_DIM: tl.constexpr):
    """Elements ``[1, DIM]`` of ``heads`` ``[HEADS]`` of a row, as float32; 0 beyond both."""
    at = row + heads[:, None] * HEAD_DIM + element
    return tl.load(x + at, mask=(heads < count)[:, None] & (element < HEAD_DIM), other=0).to(tl.float32)


@triton.jit
def turn(
    x,
    row,
    heads,
    position,
    norm,
    cos,
    sin,
    count,
    eps,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAIRS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """``heads`` of a row, normed if ``NORM``, and turned by the angles of ``position``: float32 ``[HEADS, DIM]``.

    No element moves between threads: its partner in its pair lies beside it in the same thread, or is loaded again from
    the other half of its head.
    """
    element = tl.arange(0, DIM)[None, :]
    turned = element < 2 * PAIRS
    if INTERLEAVED:
        second = element % 2 == 1
        pair = element // 2
    else:
        second = element >= PAIRS
        partner = tl.where(turned, tl.where(second, element - PAIRS, element + PAIRS), element)
        pair = tl.where(second, element - PAIRS, element)
    own = load_tile(x, row, heads, element, count, HEAD_DIM)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_DIM + eps)[:, None]
        own = own * factor * tl.load(norm + element, mask=element < HEAD_DIM, other=0)
    if INTERLEAVED:
        HEADS: tl.constexpr = own.shape[0]
        even, odd = tl.split(tl.reshape(own, [HEADS, DIM // 2, 2]))
        other = tl.where(turned, tl.reshape(tl.join(odd, even), [HEADS, DIM]), own)
    else:
        other = load_tile(x, row, heads, partner, count, HEAD_DIM)
        if NORM:
            other = other * factor * tl.load(norm + partner, mask=partner < HEAD_DIM, other=0)
    angle = position.to(tl.int64) * PAIRS + pair
    c = tl.load(cos + angle, mask=turned, other=1)
    s = tl.load(sin + angle, mask=turned, other=0)
    return own * c + tl.where(second, other, -other) * s


@triton.jit
def _finish(
    q,
    k,
    v,
    positions,
    slots,
    nq,
    nk,
    cos,
    sin,
    kv,
    scales,
    q_out,
    q_stride,
    k_stride,
    v_stride,
    heads_of_q,
    eps,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAIRS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Program (token, block of ``HEADS`` heads): the blocks of keys come first, then those of values, then queries'."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    BLOCKS: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    element = tl.arange(0, DIM)[None, :]
    if block < 2 * BLOCKS:
        heads = block % BLOCKS * HEADS + tl.arange(0, HEADS)
        slot, mine = tl.load(slots + token) + tl.zeros([HEADS], tl.int32), heads < KV_HEADS
        if block < BLOCKS:
            keys = turn(
                *(k, token * k_stride, heads, tl.load(positions + token), nk, cos, sin, KV_HEADS, eps),
                *(NORM, INTERLEAVED, PAIRS, HEAD_DIM, DIM),
            )
            store_heads(
                keys, kv, scales, slot, heads, mine, KEY, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES
            )
        else:
            values = load_tile(v, token * v_stride, heads, element, KV_HEADS, HEAD_DIM)
            store_heads(
                values, kv, scales, slot, heads, mine, VALUE, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES
            )
    else:
        heads = (block - 2 * BLOCKS) * HEADS + tl.arange(0, HEADS)
        queries = turn(
            *(q, token * q_stride, heads, tl.load(positions + token), nq, cos, sin, heads_of_q, eps),
            *(NORM, INTERLEAVED, PAIRS, HEAD_DIM, DIM),
        )
        at = (token * heads_of_q + heads[:, None]) * HEAD_DIM + element
        here = (heads < heads_of_q)[:, None] & (element < HEAD_DIM)
        tl.store(q_out + at, queries.to(q_out.dtype.element_ty), mask=here)


def qkv_finish(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    nq: torch.Tensor | None,
    nk: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: torch.Tensor,
    q_out: torch.Tensor,
    *,
    head_dim: int,
    page_size: int,
    interleaved: bool,
    eps: float,
) -> None:
    """``qkv_rope_kv_write`` from its projections on: norms heads (where there is ``nq``), turns queries and keys, puts
    the queries into ``q_out`` [T, D], keys and values into their slots of ``kv``.

    ``q`` [T, D], ``k`` and ``v`` [T, G] may be columns of one wider tensor: only their rows must be contiguous. They
    may have any floating-point type. ``q_out`` must not overlap ``q``.
    """
    tokens, kv_heads, heads_of_q = q.shape[0], k.shape[1] // head_dim, q.shape[1] // head_dim
    if tokens == 0:
        return
    shape = sizes(head_dim, kv_heads, page_size, kv)
    heads = min(8, triton.next_power_of_2(kv_heads))
    default = Config({"HEADS": heads}, num_warps=warps(heads * shape["DIM"]))
    chosen = config("qkv_finish", (heads_of_q, kv_heads, head_dim), default)
    blocks = [triton.cdiv(count, chosen.meta["HEADS"]) for count in (kv_heads, kv_heads, heads_of_q)]
    _finish[(tokens, sum(blocks))](
        *(q, k, v, positions, slots, nq, nk, cos, sin, kv, scales_of(kv), q_out),
        *(q.stride(0), k.stride(0), v.stride(0), heads_of_q, eps),
        NORM=nq is not None,
        INTERLEAVED=interleaved,
        PAIRS=cos.shape[1],
        **shape,
        **chosen.options,
    )


def qkv_rope_kv_write(
    x: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    wq: torch.Tensor,
    wk: torch.Tensor,
    wv: torch.Tensor,
    bq: torch.Tensor | None,
    bk: torch.Tensor | None,
    bv: torch.Tensor | None,
    nq: torch.Tensor | None,
    nk: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: torch.Tensor,
    q: torch.Tensor,
    *,
    head_dim: int,
    page_size: int,
    interleaved: bool,
    eps: float,
) -> None:
    """Three projections of ``x`` [T, K] in one launch, all that follows them in another: ``q`` [T, D], and the cache.

    The projections of few tokens keep float32 in between.
    """
    keys = kv.shape[2] * head_dim  # [pages, key / value, kv_head, …]
    dtype = x.dtype if any(many(x, weight) for weight in (wq, wk, wv)) else torch.float32
    projected = [x.new_empty((x.shape[0], width), dtype=dtype) for width in (q.shape[1], keys, keys)]
    project3(x, wq, wk, wv, bq, bk, bv, *projected)
    how = {"head_dim": head_dim, "page_size": page_size, "interleaved": interleaved, "eps": eps}
    qkv_finish(*projected, positions, slots, nq, nk, cos, sin, kv, q, **how)
