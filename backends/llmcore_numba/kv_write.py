"""kv_write over the pages of :mod:`llmcore_numba.kv_layout`."""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import claim, dim, i64_attr, inlined, load_i32, scratch, tensor
from llmcore_numba.kv_pages import PerKVType, blocks_in, gather, padded
from llmcore_numba.kv_types import UNIT
from llmcore_numba.operands import operands_of

K, V, SLOTS, KV, T, G, HEAD_DIM, PAGE_SIZE = operands_of("kv_write")
ELEMENTS = None  # each kernel's own


@inlined
def write_head(elements, x, values, slot, kv, heads, head, head_dim, page_size, work):
    """One token's key of a head, ``head_dim`` float32 at ``x``, to ``slot`` of the cache; ``values``: its value."""
    pitch, page, at = padded(head_dim), slot // page_size, slot % page_size
    block = pitch * elements.column_bytes
    half = blocks_in(page_size) * block
    place = kv + (page * heads + head) * 2 * half + at // 16 * block
    gather(x, work, head_dim, np.float32(1.0))
    for unit in range((head_dim + UNIT - 1) // UNIT):
        if values:
            elements.write_values(work + unit * UNIT * 4, place + half, unit, at % 16, pitch)
        else:
            elements.write_keys(work + unit * UNIT * 4, place, unit, at % 16)


@inlined
def write_token(elements, k, v, slot, kv, width, head_dim, page_size, work):
    """One token's keys and values, ``width`` float32 at ``k`` and ``v``, to ``slot`` of the cache."""
    heads = width // head_dim
    for head in range(heads):
        source = head * head_dim * 4
        write_head(elements, k + source, 0, slot, kv, heads, head, head_dim, page_size, work)
        write_head(elements, v + source, 1, slot, kv, heads, head, head_dim, page_size, work)


@inlined
def tokens_per_chunk(tokens):
    """Tokens whose keys one thread writes: a prompt's neighbours share cache lines."""
    return 16 if tokens >= 64 else 1


@PerKVType
def kv_write(operands, thread, _threads):
    tokens, width = dim(operands, T), dim(operands, G)
    k, v, slots = tensor(operands, K), tensor(operands, V), tensor(operands, SLOTS)
    kv, head_dim = tensor(operands, KV), i64_attr(operands, HEAD_DIM)
    page_size, work = i64_attr(operands, PAGE_SIZE), scratch(operands, thread)
    chunk = tokens_per_chunk(tokens)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            at, slot = token * width * 4, load_i32(slots + token * 4)
            write_token(ELEMENTS, k + at, v + at, slot, kv, width, head_dim, page_size, work)
        first = claim(operands) * chunk
