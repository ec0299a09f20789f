"""The pages of :mod:`llmcore_numba.kv_layout` as kernels see them: element types, and where a sequence's blocks are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llmcore.native.abi import NativeFunction, inlined, load_i32, native_kernel, specialised, store_i64
from llmcore.native.vector import load, load_first, splat, store
from llmcore_numba import kv_layout
from llmcore_numba.kv_tile import BLOCKS, ENTRY, IN_USE, NEXT, POSITION, VALUES, times_keys, times_values
from llmcore_numba.kv_types import KV_TYPES, UNIT, putter, writers

padded = inlined(kv_layout.padded)


class Elements(NamedTuple):
    """One element type of the cache, as kernels are compiled for it.

    Attributes:
        column_bytes: bytes that a block takes for each element of a head.
        factor_bytes: bytes of an element of a query, or a weight, once it is ``put`` somewhere.
    """

    column_bytes: int
    factor_bytes: int
    put: Callable[..., Any]
    times_keys: Callable[..., Any]
    times_values: Callable[..., Any]
    write_keys: Callable[..., Any]
    write_values: Callable[..., Any]


class PerKVType:
    """One kernel for every element type, made of one template: ``kernels.int8``.

    Args:
        template: ``f(operands, thread, threads)`` over the global name ``ELEMENTS``.
    """

    def __init__(self, template) -> None:
        self.template = template

    def __getattr__(self, name: str) -> NativeFunction:
        if name not in KV_TYPES:
            raise AttributeError(f"{self.template.__name__} has no kernel for {name}")
        kind = KV_TYPES[name]
        size = kind.unit_bytes // UNIT
        elements = Elements(size, kind.factor_bytes, putter(kind), times_keys(kind), times_values(kind), *writers(kind))
        kernel = native_kernel(specialised(self.template, f"{self.template.__name__}_{name}", ELEMENTS=elements))
        setattr(self, name, kernel)
        return kernel


class Head(NamedTuple):
    """One key head of a sequence.

    Attributes:
        keys: its keys in page 0; ``page_bytes`` from one page to the next, ``half`` from keys to values.
        table: the sequence's pages.
        block: bytes of 16 positions.
    """

    keys: int
    page_bytes: int
    half: int
    table: int
    page_size: int
    block: int


@inlined
def blocks_in(page_size):
    """Blocks of a page."""
    return (page_size + 15) // 16


@inlined
def blocks_of(length, page_size):
    """Blocks of a sequence."""
    return (length - 1) // page_size * blocks_in(page_size) + (length - 1) % page_size // 16 + 1


@inlined
def position_of(block, page_size):
    """The first position of a sequence's block."""
    return block // blocks_in(page_size) * page_size + block % blocks_in(page_size) * 16


@inlined
def keys_of(block, head):
    """The address of a block's keys."""
    in_page = blocks_in(head.page_size)
    page = load_i32(head.table + block // in_page * 4)
    return head.keys + page * head.page_bytes + block % in_page * head.block


@inlined
def find_blocks(entries, first, head, length, follow, follow_length):
    """Describes the blocks of a span that begins with block ``first``.

    Each entry is the addresses of the block's keys and values, its first position, and how many of its 16 positions
    there are below ``length``. Those beyond are described as the last one, without positions. It ends with the address
    of the keys of a block of the next span: of this head's, or else of the first span of the head ``follow``, which has
    ``follow_length`` positions. Returns how many positions there are altogether.
    """
    positions = 0
    keys = after = head.keys
    for block in range(first, first + BLOCKS):
        position = position_of(block, head.page_size)
        count = max(0, min(16, head.page_size - position % head.page_size, length - position))
        if count > 0:  # only then is there a page
            keys = keys_of(block, head)
        if position_of(block + BLOCKS, head.page_size) < length:
            after = keys_of(block + BLOCKS, head)
        elif position_of(block - first, follow.page_size) < follow_length:
            after = keys_of(block - first, follow)
        entry = entries + (block - first) * ENTRY
        store_i64(entry, keys)
        store_i64(entry + VALUES, keys + head.half)
        store_i64(entry + POSITION, position)
        store_i64(entry + IN_USE, count)
        store_i64(entry + NEXT, after)
        positions += count
    return positions


@inlined
def gather(source, target, head_dim, factor):
    """Copies a head times ``factor``, and zeros up to a multiple of 16."""
    whole, factors = head_dim & ~15, splat(factor)
    for i in range(0, whole, 16):
        store(target + i * 4, load(source + i * 4) * factors)
    if whole < head_dim:
        store(target + whole * 4, load_first(source + whole * 4, head_dim - whole) * factors)
