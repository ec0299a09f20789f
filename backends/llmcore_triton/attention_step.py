"""One step of online softmax over a block of cached tokens (Milakov & Gimelshein 2018, arXiv:1805.02867; in attention:
Dao et al. 2022, arXiv:2205.14135), which decode and prefill share.

Scores are kept in base 2: ``exp2`` is one instruction of a GPU, and log2(e) goes into the scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmcore_triton.kv_pages import KEY, VALUE, load_heads, load_pages
from llmcore_triton.operand_order import reorder_columns, reorder_summed

LOG2E = 1.4426950408889634


@triton.jit
def attend(
    q,
    total,
    largest,
    weight,
    pages,
    visible,
    scale,
    kv,
    scales,
    table,
    head,
    start,
    end,
    MASKED: tl.constexpr,
    REORDER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """The softmax over the tokens before ``start`` becomes that over ``BLOCK_N`` more.

    The pages of the next block are asked for before this one's are read: loads whose addresses are known when an
    iteration begins are what the compiler can start several iterations ahead.

    Args:
        q: [rows, DIM], 0 beyond ``HEAD_DIM``.
        total, largest, weight: float32 [rows, DIM], [rows] and [rows]: the values seen so far by their weights
            ``2 ** (score - largest)``, the largest score, and the sum of the weights.
        pages: int32 [BLOCK_N], those of the block's tokens.
        visible: [rows], how many tokens of the sequence each row sees. A row must see token ``start`` or one before.
        scale: of scores, times log2(e).
        end: of the sequence's tokens that may be read, beyond ``start``.
        MASKED: some of the block may lie at ``end`` or beyond, or out of a row's sight.
        REORDER: ``q`` has the elements of ``summed_elements``, ``total`` those of ``column_elements``.

    Returns:
        ``total``, ``largest``, ``weight`` and ``pages`` for the next block.
    """
    tokens = start + tl.arange(0, BLOCK_N)
    places, there = tokens % PAGE_SIZE, tokens < end
    following = load_pages(table, start + BLOCK_N, end, BLOCK_N, PAGE_SIZE)
    keys = load_heads(
        kv, scales, pages, places, there, head, KEY, MASKED, HEAD_DIM, DIM, KV_HEADS, HEAD_STRIDE, SCALES
    ).to(q.dtype)  # [BLOCK_N, DIM]
    if REORDER:
        keys = reorder_summed(keys)
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale  # [rows, BLOCK_N]
    if MASKED:
        scores = tl.where(tokens[None, :] < visible[:, None], scores, float("-inf"))
    raised = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - raised[:, None])
    kept = tl.exp2(largest - raised)
    weight = weight * kept + tl.sum(weights, axis=1)
    values = load_heads(
        kv, scales, pages, places, there, head, VALUE, MASKED, HEAD_DIM, DIM, KV_HEADS, HEAD_STRIDE, SCALES
    ).to(q.dtype)  # [BLOCK_N, DIM]
    if REORDER:
        values = reorder_columns(values)
    total = tl.dot(weights.to(q.dtype), values, total * kept[:, None], input_precision="ieee")
    return total, raised, weight, following


@triton.jit
def mean(total, weight):
    """The values by their weights; 0 where nothing was seen."""
    return total / tl.where(weight == 0, 1.0, weight)[:, None]
