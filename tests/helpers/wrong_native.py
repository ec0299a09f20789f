"""Native kernels in Numba, right ones and deliberately wrong ones, that the conformance kit is tried on."""

from __future__ import annotations

import numpy as np

from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.native.abi import (
    SCRATCH_BYTES,
    claim,
    dim,
    i64_attr,
    inlined,
    load_f32,
    load_i32,
    native_kernel,
    scratch,
    store_f32,
    store_i64,
    tensor,
)


@native_kernel
def add(operands, thread, threads):  # type: ignore[no-untyped-def]
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    row = claim(operands)
    while row < rows:
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at))
        row = claim(operands)


@native_kernel
def add_one_row_too_many(operands, thread, threads):  # type: ignore[no-untyped-def]
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    row = claim(operands)
    while row <= rows:
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at))
        row = claim(operands)


@native_kernel
def add_divides_by_threads(operands, thread, threads):  # type: ignore[no-untyped-def]
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    for row in range(thread, rows, threads):
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at))


@native_kernel
def add_past_its_scratch(operands, thread, threads):  # type: ignore[no-untyped-def]
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    row = claim(operands)
    while row < rows:
        store_i64(scratch(operands, thread) + SCRATCH_BYTES, 0)
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at))
        row = claim(operands)


@native_kernel
def add_past_first_scratch(operands, thread, threads):  # type: ignore[no-untyped-def]
    """As if only thread 0 were short of memory: what it writes to is thread 1's."""
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    row = claim(operands)
    while row < rows:
        if threads > 1:
            store_i64(scratch(operands, 0) + SCRATCH_BYTES, 0)
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at))
        row = claim(operands)


@inlined
def _add_after(operands, stray):  # type: ignore[no-untyped-def]
    """A right addition, after a look at ``stray`` bytes past the end of a."""
    rows, width = dim(operands, 3), dim(operands, 4)
    a, b, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 2)
    row = claim(operands)
    while row < rows:
        nothing = load_f32(a + stray) * np.float32(0)
        for at in range(row * width * 4, (row + 1) * width * 4, 4):
            store_f32(y + at, load_f32(a + at) + load_f32(b + at) + nothing)
        row = claim(operands)


@native_kernel
def add_reads_past_the_end(operands, thread, threads):  # type: ignore[no-untyped-def]
    _add_after(operands, dim(operands, 3) * dim(operands, 4) * 4)


@native_kernel
def add_reads_before_the_start(operands, thread, threads):  # type: ignore[no-untyped-def]
    _add_after(operands, -4)


@inlined
def _rope(operands, head_dim, interleaved):  # type: ignore[no-untyped-def]
    tokens, width, pairs = dim(operands, 5), dim(operands, 6), dim(operands, 8)
    x, positions, y = tensor(operands, 0), tensor(operands, 1), tensor(operands, 4)
    cos, sin = tensor(operands, 2), tensor(operands, 3)
    token = claim(operands)
    while token < tokens:
        angles = load_i32(positions + 4 * token) * pairs * 4
        for head in range(token * width, (token + 1) * width, head_dim):
            for pair in range(pairs):
                first = head + (2 * pair if interleaved else pair)
                second = first + (1 if interleaved else pairs)
                a, b = load_f32(x + 4 * first), load_f32(x + 4 * second)
                c, s = load_f32(cos + angles + 4 * pair), load_f32(sin + angles + 4 * pair)
                store_f32(y + 4 * first, a * c - b * s)
                store_f32(y + 4 * second, b * c + a * s)
            for rest in range(head + 2 * pairs, head + head_dim):
                store_f32(y + 4 * rest, load_f32(x + 4 * rest))
        token = claim(operands)


@native_kernel
def rope(operands, thread, threads):  # type: ignore[no-untyped-def]
    _rope(operands, i64_attr(operands, 9), i64_attr(operands, 10))


@native_kernel
def rope_attributes_in_other_order(operands, thread, threads):  # type: ignore[no-untyped-def]
    """Takes ``interleaved`` from the place of ``head_dim``; one head is the whole row, which keeps it within bounds."""
    _rope(operands, dim(operands, 6), i64_attr(operands, 9))


def _backend(kernel: str) -> BackendInfo:
    return BackendInfo("mine", "", (KernelInfo("add", f"helpers.wrong_native:{kernel}", abi="native"),))


RIGHT = _backend("add")
READS_PAST = _backend("add_reads_past_the_end")
READS_BEFORE = _backend("add_reads_before_the_start")
ONE_ROW_TOO_MANY = _backend("add_one_row_too_many")
PAST_ITS_SCRATCH = _backend("add_past_its_scratch")
DIVIDES = _backend("add_divides_by_threads")
