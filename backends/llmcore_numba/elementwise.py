"""add, swiglu, gather: nothing but memory traffic."""

from __future__ import annotations

from llmcore.native.abi import claim, dim, inlined, load_i32, native_kernel, tensor
from llmcore.native.exponential import sigmoid
from llmcore.native.vector import load, load_first, store, store_first
from llmcore_numba.operands import operands_of

CHUNK = 4096  # elements

A, B, SUM, ADD_M, ADD_D = operands_of("add")
GATE, UP, ACTIVATED, SWIGLU_M, SWIGLU_F = operands_of("swiglu")
X, ROWS, PICKED, _T, GATHER_D, GATHER_R = operands_of("gather")


@inlined
def gated(gate, up):
    """``silu(gate) * up`` of two vectors."""
    return gate * sigmoid(gate) * up


@inlined
def copy(source, target, count):
    """Copies ``count`` float32."""
    whole = count & ~15
    for i in range(0, whole, 16):
        store(target + i * 4, load(source + i * 4))
    if whole < count:
        store_first(target + whole * 4, load_first(source + whole * 4, count - whole), count - whole)


@native_kernel
def add(operands, _thread, _threads):
    size = dim(operands, ADD_M) * dim(operands, ADD_D)
    a, b, y = tensor(operands, A), tensor(operands, B), tensor(operands, SUM)
    first = claim(operands) * CHUNK
    while first < size:
        end = min(first + CHUNK, size)
        whole = first + ((end - first) & ~15)
        for i in range(first, whole, 16):
            store(y + i * 4, load(a + i * 4) + load(b + i * 4))
        if whole < end:
            at, rest = whole * 4, end - whole
            store_first(y + at, load_first(a + at, rest) + load_first(b + at, rest), rest)
        first = claim(operands) * CHUNK


@native_kernel
def swiglu(operands, _thread, _threads):
    size = dim(operands, SWIGLU_M) * dim(operands, SWIGLU_F)
    gate, up, y = tensor(operands, GATE), tensor(operands, UP), tensor(operands, ACTIVATED)
    first = claim(operands) * CHUNK
    while first < size:
        end = min(first + CHUNK, size)
        whole = first + ((end - first) & ~15)
        for i in range(first, whole, 16):
            store(y + i * 4, gated(load(gate + i * 4), load(up + i * 4)))
        if whole < end:
            at, rest = whole * 4, end - whole
            store_first(y + at, gated(load_first(gate + at, rest), load_first(up + at, rest)), rest)
        first = claim(operands) * CHUNK


@native_kernel
def gather(operands, _thread, _threads):
    count, width = dim(operands, GATHER_R), dim(operands, GATHER_D)
    x, rows, y = tensor(operands, X), tensor(operands, ROWS), tensor(operands, PICKED)
    row = claim(operands)
    while row < count:
        copy(x + load_i32(rows + row * 4) * width * 4, y + row * width * 4, width)
        row = claim(operands)
