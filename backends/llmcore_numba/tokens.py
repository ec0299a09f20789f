"""Tokens of the integer kernels: quantized by all threads before the op, or one by each thread for itself."""

from __future__ import annotations

from collections.abc import Callable

from llmcore.native.abi import NativeFunction, claim, dim, native_kernel, scratch, specialised
from llmcore_numba.family import Family
from llmcore_numba.inputs import constants_for, input_of, part, prepared
from llmcore_numba.packing import OUTLIER, PANEL
from llmcore_numba.quantize import limits_for, panel_bytes, quantize_panel
from llmcore_numba.scratch import OWN_TOKEN

T = K = 0  # operands: each op has its own
HEAD = 64  # bytes of scratch memory that quantize_panel works in
limits_of = limits_for("linear")  # each op has its own


def _quantize(operands, thread, _threads):
    tokens, inner = dim(operands, T), dim(operands, K)
    out, work = prepared(operands), scratch(operands, thread)
    panel = PANEL if tokens > 1 else 1
    first = claim(operands) * panel
    while first < tokens:
        x = input_of(operands, first, min(first + panel, tokens) - 1, work + HEAD)
        to = out + first // panel * panel_bytes(inner, panel)
        quantize_panel(limits_of, x, to, first, tokens - 1, inner, panel, work)
        first = claim(operands) * panel


def _shared(operands, _thread):
    return prepared(operands)


def _own(operands, thread):
    inner, work = dim(operands, K), scratch(operands, thread) + OWN_TOKEN
    out = work + HEAD
    x = input_of(operands, 0, 0, out + (panel_bytes(inner, 1) + 63 & ~63))
    quantize_panel(limits_of, x, out, 0, 0, inner, 1, work)
    return out


def tokens_for(op: str, *, alone: bool) -> Callable[[int, int], int]:
    """``tokens_of(operands, thread)``: the address of the op's quantized tokens, for a thread that has a chunk.

    ``alone``: there is one token, and nobody has quantized it yet.
    """
    return part(_own if alone else _shared, op, {**constants_for(op), "limits_of": limits_for(op)})


def _stage(op: str) -> NativeFunction:
    if op not in OUTLIER:
        raise AttributeError(op)
    constants = {**constants_for(op), "limits_of": limits_for(op)}
    return native_kernel(specialised(_quantize, f"quantize_{op}", **constants))


quantized = Family(_stage)
"""``quantized.linear`` quantizes the tokens of ``linear`` into the workspace."""
