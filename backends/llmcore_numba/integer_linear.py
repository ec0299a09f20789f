"""The linear ops on packed integer weights: tokens are quantized (:mod:`llmcore_numba.quantize`), then multiplied.

A *strip* is a row of blocks: 32 rows of weights. A unit of work is a strip, or one of ``gate`` and one of ``up``, for
up to 128 tokens. ``linear.int4`` is the kernel for weights packed in 4 bits.
"""

from __future__ import annotations

from typing import Any

from llmcore.native.abi import (
    dim,
    fetch_add,
    inlined,
    load_i64,
    scratch,
    specialised,
    tensor,
)
from llmcore.native.machine import machine
from llmcore.native.vector import LANES, load, store, zeros
from llmcore_numba.best import best_of_chunks, clear, note_best
from llmcore_numba.chunks import claims_early, next_run
from llmcore_numba.elementwise import gated
from llmcore_numba.inputs import kernels_of
from llmcore_numba.integer import LINE, integer_tile, outlier_tile
from llmcore_numba.integer_sums import large_tile
from llmcore_numba.linear import finish
from llmcore_numba.operands import names_of
from llmcore_numba.packing import COLUMNS, PACKINGS, PANEL, RECORD, ROWS, VECTORS
from llmcore_numba.quantize import list_head, panel_bytes
from llmcore_numba.scratch import SHARED, SHARED_BYTES
from llmcore_numba.tokens import tokens_for
from llmcore_numba.weights import load_up_to, store_up_to

TOKENS, TOGETHER = large_tile()
FEW = 4  # tokens of the small tile
AHEAD = 0 if machine().has("avx512f") else 2048
"""Bytes: how far before its use a block is asked for where a single token waits for memory.

Measured: Zen 3 reads a quarter faster with it. Zen 4, for which AVX512 has to stand here, a quarter faster without.
"""
TOKEN_CHUNK = 128
SLOT_BYTES = 1 << 16  # of a classifier's weights, of which the largest result has a slot

PACKING = PACKINGS["Q8_0"]  # each kernel has its own, with its tiles
NBYTES = PACKING.nbytes
one_token = integer_tile(PACKING, 1, VECTORS, 1, asks=AHEAD > 0)
few_tokens = integer_tile(PACKING, FEW, TOGETHER, PANEL)
many_tokens = integer_tile(PACKING, TOKENS, TOGETHER, PANEL)
outliers = outlier_tile(PACKING)
tokens_of = tokens_for("linear", alone=True)

WEIGHT = BIAS = RESIDUAL = GATE = UP = Y = IDS = M = K = N = F = 0  # operands: each op has its own


def parts_for(op: str, name: str, *, alone: bool) -> dict[str, Any]:
    """What a kernel of ``op`` is made of, by global names; ``alone``: for one token that nobody has quantized yet.

    Args:
        name: of a packing.
    """
    packing = next((packing for packing in PACKINGS.values() if packing.name == name), None)
    if packing is None:
        raise AttributeError(f"{op} has no kernel for {name}")
    tiles = {
        "one_token": integer_tile(packing, 1, VECTORS, 1, asks=AHEAD > 0),
        "outliers": outlier_tile(packing),
    }
    by_one = inlined(specialised(_strip_for_one, f"strip_{name}_for_one", **tiles))
    tiles["few_tokens"], tiles["many_tokens"] = (integer_tile(packing, n, TOGETHER, PANEL) for n in (FEW, TOKENS))
    by_any = inlined(specialised(_strip, f"strip_{name}", **tiles, strip_for_one=by_one))
    parts = {"NBYTES": packing.nbytes, "strip": by_one if alone else by_any, "tokens_of": tokens_for(op, alone=alone)}
    return {**names_of(op), **parts}


def _strip_for_one(weights, groups, tokens, _token, _end, _ask, _lines, out):
    """:func:`_strip` for a token that comes alone, and has a panel of its own.

    Memory takes the time: it is read in order, and the outliers' columns are in the cache afterwards.
    """
    extra = out + ROWS * 4
    for i in range(0, 2 * ROWS * 4, 64):
        store(out + i, zeros())
    one_token(weights, groups, tokens, weights + AHEAD, 0, out)
    outliers(weights, tokens + groups * RECORD, list_head(1), 0, 1, extra)
    for i in range(0, ROWS * 4, 64):
        store(out + i, load(out + i) + load(extra + i))


strip_for_one = inlined(_strip_for_one)


def _strip(weights, groups, tokens, token, end, ask, lines, out):
    """The strip at ``weights`` for up to ``TOKENS`` tokens from ``token`` on: ``out[token, 32 rows]``.

    ``end`` is behind the last token; those behind it in the last panel are computed too. ``ask`` and ``lines``
    are of the weights that this thread needs next, see :func:`asked_for`.
    """
    if end == 1:
        strip_for_one(weights, groups, tokens, token, end, ask, lines, out)
        return
    for i in range(0, TOKENS * ROWS * 4, 64):
        store(out + i, zeros())
    place, some = token % PANEL, min(TOKENS, end - token)
    panel = tokens + token // PANEL * panel_bytes(groups * COLUMNS, PANEL)
    outliers(weights, panel + PANEL * groups * RECORD, list_head(PANEL), place, some, out)
    if some <= FEW:
        few_tokens(weights, groups, panel + place * 4, ask, lines, out)
    else:
        many_tokens(weights, groups, panel + place * 4, ask, lines, out)


strip = inlined(_strip)


@inlined
def asked_for(following, nbytes, groups, token, begin, end):
    """``ask`` and ``lines`` of the tile of tokens from ``token`` on: its share of the strip at ``following``, or none.

    The tiles of a strip, for tokens ``begin`` … ``end`` - 1, have equal shares: memory is read while any of them
    multiplies.
    """
    if following == 0:
        return 0, 0
    tiles, tile = (end - begin + TOKENS - 1) // TOKENS, (token - begin) // TOKENS
    lines = (groups * nbytes + LINE - 1) // LINE
    first, behind = lines * tile // tiles, lines * (tile + 1) // tiles
    return following + first * LINE, behind - first


@inlined
def strips_of(outer):
    """Strips that ``outer`` rows are in; what the last one has more of is zero."""
    return (outer + ROWS - 1) // ROWS


@inlined
def token_chunks(tokens):
    """In how many parts tokens are multiplied with a strip."""
    return (tokens + TOKEN_CHUNK - 1) // TOKEN_CHUNK


@inlined
def multiply_strip(strip, nbytes, tokens, begin, end, at, weight, bias, residual, y, inner, outer, following, out):
    """Rows ``at`` … of ``y = residual + x @ weight.T + bias``, up to 32, for tokens ``begin`` … ``end`` - 1.

    The strip at the address ``following`` is asked for, if that is not 0.
    """
    groups = inner // COLUMNS
    here = weight + at // ROWS * groups * nbytes
    for token in range(begin, end, TOKENS):
        ask, lines = asked_for(following, nbytes, groups, token, begin, end)
        strip(here, groups, tokens, token, end, ask, lines, out)
        for i in range(min(TOKENS, end - token)):
            for row in range(at, min(at + ROWS, outer), LANES):
                sums, place = out + (i * ROWS + row - at) * 4, ((token + i) * outer + row) * 4
                finish(sums, bias, residual, y, place, row, min(LANES, outer - row))


@inlined
def multiply(strip, nbytes, tokens_of, operands, thread, threads, weight, bias, residual, y, rows, inner, outer):
    """``y = residual + x @ weight.T + bias`` for quantized tokens; ``bias`` and ``residual`` may be 0."""
    out, strips, strip_bytes = scratch(operands, thread), strips_of(outer), inner // COLUMNS * nbytes
    units = strips * token_chunks(rows)
    unit, end, past = next_run(operands, thread, threads, units, 0)
    early = claims_early(rows, units, threads)
    tokens = tokens_of(operands, thread) if unit < end else 0
    while unit < end:
        at, begin = unit % strips * ROWS, unit // strips * TOKEN_CHUNK
        unit += 1
        if unit == end and early:
            unit, end, past = next_run(operands, thread, threads, units, past)
        then, stop = weight + unit % strips * strip_bytes if unit < end else 0, min(begin + TOKEN_CHUNK, rows)
        multiply_strip(strip, nbytes, tokens, begin, stop, at, weight, bias, residual, y, inner, outer, then, out)
        if unit == end:
            unit, end, past = next_run(operands, thread, threads, units, past)


def _linear(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, bias, y = tensor(operands, WEIGHT), tensor(operands, BIAS), tensor(operands, Y)
    multiply(strip, NBYTES, tokens_of, operands, thread, threads, weight, bias, 0, y, rows, inner, outer)


def _linear_add(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, bias, y = tensor(operands, WEIGHT), tensor(operands, BIAS), tensor(operands, Y)
    residual = tensor(operands, RESIDUAL)
    multiply(strip, NBYTES, tokens_of, operands, thread, threads, weight, bias, residual, y, rows, inner, outer)


def _gate_up_swiglu(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, F)
    y, gates, groups = tensor(operands, Y), scratch(operands, thread), inner // COLUMNS
    ups = gates + TOKENS * ROWS * 4
    gate, to_up = tensor(operands, GATE), tensor(operands, UP) - tensor(operands, GATE)
    strips, strip_bytes = strips_of(outer), groups * NBYTES
    units = strips * token_chunks(rows)
    unit, end, past = next_run(operands, thread, threads, units, 0)
    early = claims_early(rows, units, threads)
    tokens = tokens_of(operands, thread) if unit < end else 0
    while unit < end:
        at, begin = unit % strips * ROWS, unit // strips * TOKEN_CHUNK
        here = gate + unit % strips * strip_bytes
        unit += 1
        if unit == end and early:
            unit, end, past = next_run(operands, thread, threads, units, past)
        then, stop = gate + unit % strips * strip_bytes if unit < end else 0, min(begin + TOKEN_CHUNK, rows)
        for token in range(begin, stop, TOKENS):
            ask, lines = asked_for(then, NBYTES, groups, token, begin, stop)
            strip(here, groups, tokens, token, stop, ask, lines, gates)
            strip(here + to_up, groups, tokens, token, stop, ask + to_up, lines, ups)
            for i in range(min(TOKENS, stop - token)):
                for row in range(at, min(at + ROWS, outer), LANES):
                    sums, place = (i * ROWS + row - at) * 4, y + ((token + i) * outer + row) * 4
                    store_up_to(place, gated(load(gates + sums), load(ups + sums)), min(LANES, outer - row))
        if unit == end:
            unit, end, past = next_run(operands, thread, threads, units, past)


def _gate_up_swiglu_alone(operands, thread, threads):
    """For one token: of each run all rows of ``gate``, which wait in ``y``, and then all of ``up``."""
    inner, outer, out = dim(operands, K), dim(operands, F) * dim(operands, M), scratch(operands, thread)
    gate, up, y, groups = tensor(operands, GATE), tensor(operands, UP), tensor(operands, Y), inner // COLUMNS
    first, last, past = next_run(operands, thread, threads, strips_of(outer), 0)
    tokens = tokens_of(operands, thread) if first < last else 0
    while first < last:
        for index in range(first, last):
            multiply_strip(strip, NBYTES, tokens, 0, 1, index * ROWS, gate, 0, 0, y, inner, outer, 0, out)
        for index in range(first, last):
            strip(up + index * groups * NBYTES, groups, tokens, 0, 1, 0, 0, out)
            for row in range(index * ROWS, min(index * ROWS + ROWS, outer), LANES):
                sums, place, count = out + (row - index * ROWS) * 4, y + row * 4, min(LANES, outer - row)
                store_up_to(place, gated(load_up_to(place, count), load(sums)), count)
        first, last, past = next_run(operands, thread, threads, strips_of(outer), past)


def _classifier_argmax(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, out, groups = tensor(operands, WEIGHT), scratch(operands, thread), inner // COLUMNS
    strips, strip_bytes = strips_of(outer), groups * NBYTES
    slots = scratch(operands, 0) + SHARED
    most_chunks = max(1, SHARED_BYTES // (8 * max(1, rows)))  # so many that the slots fit
    some = max(SLOT_BYTES // strip_bytes, (strips + most_chunks - 1) // most_chunks, 1)
    chunks = (strips + some - 1) // some if rows else 0
    chunk, end, past = next_run(operands, thread, threads, chunks, 0)
    early = claims_early(rows, chunks, threads)
    tokens = tokens_of(operands, thread) if chunk < end else 0
    while chunk < end:
        mine, first, last = slots + chunk * rows * 8, chunk * some, min((chunk + 1) * some, strips)
        chunk += 1
        if chunk == end and early:
            chunk, end, past = next_run(operands, thread, threads, chunks, past)
        for token in range(rows):
            clear(mine + token * 8, first * ROWS)
        for index in range(first, last):
            then = index + 1 if index + 1 < last else chunk * some
            ahead = weight + then * strip_bytes if index + 1 < last or chunk < end else 0
            for token in range(0, rows, TOKENS):
                ask, lines = asked_for(ahead, NBYTES, groups, token, 0, rows)
                strip(weight + index * strip_bytes, groups, tokens, token, rows, ask, lines, out)
                for i in range(min(TOKENS, rows - token)):
                    count = min(ROWS, outer - index * ROWS)
                    note_best(out + i * ROWS * 4, index * ROWS, count, mine + (token + i) * 8)
        if fetch_add(load_i64(operands) + 8, 1) == chunks - 1:  # this was the last chunk to be done
            best_of_chunks(slots, chunks, rows, tensor(operands, IDS))
        if chunk == end:
            chunk, end, past = next_run(operands, thread, threads, chunks, past)


linear = kernels_of("linear", _linear, parts_for)
linear_add = kernels_of("linear_add", _linear_add, parts_for)
gate_up_swiglu = kernels_of("gate_up_swiglu", _gate_up_swiglu, parts_for, _gate_up_swiglu_alone)
rms_norm_gate_up_swiglu = kernels_of("rms_norm_gate_up_swiglu", _gate_up_swiglu, parts_for, _gate_up_swiglu_alone)
classifier_argmax = kernels_of("classifier_argmax", _classifier_argmax, parts_for)
