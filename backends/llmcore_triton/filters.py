"""What stays of a row of probabilities. No vocabulary is ever sorted.

top_k and top_p keep what is not below some probability: the smallest one such that all larger ones together number less
than ``k``, or weigh less than ``p``. It is found digit by digit of its bits (radix selection), since non-negative
floats are ordered like the integers with the same bits: a launch for each digit adds up, for every value of it, the
weights of those tokens that begin with the digits found so far. Probabilities are weighed as integers, in units of
2**-61: their sums are exact, in any order, so nothing depends on which program came first, or on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config
from llmcore_triton.sampling import chunked

BITS = tl.constexpr(30)  # of a float32 below 2; the sign and the exponent's highest bit are 0
LARGEST = tl.constexpr(2**30 - 1)
DIGIT = tl.constexpr(5)
VALUES = tl.constexpr(32)
DIGITS = 6
ONE = tl.constexpr(2.0**61)
EVERYTHING = tl.constexpr(2**63 - 1)  # a limit that is never reached


@triton.jit
def _load(probs_ptr, row, column, V):
    """Probabilities, with zero for NaN and past the row."""
    x = tl.load(probs_ptr + row * V + column, mask=column < V, other=0.0)
    return tl.where(x > 0.0, x, 0.0)


@triton.jit
def _limit(limit_ptr, row, BY_MASS: tl.constexpr):
    """What all larger probabilities together must stay below: at least one unit, so that the best token is kept."""
    value = tl.load(limit_ptr + row)
    if BY_MASS:
        units = (tl.minimum(tl.maximum(value, 0.0), 1.0) * ONE).to(tl.int64)
        return tl.where(value < 1.0, tl.maximum(units, 1), EVERYTHING)
    return tl.where(value > 0, value.to(tl.int64), EVERYTHING)


@triton.jit
def _found(weights_ptr, limit, FOUND: tl.constexpr):
    """The first ``FOUND`` digits of the threshold, from the weights that the launches before this one have added up."""
    digits = tl.arange(0, VALUES)
    prefix = 0
    above = tl.zeros((), tl.int64)  # the weight of all that is larger in the digits so far
    for i in tl.static_range(FOUND):
        weights = tl.load(weights_ptr + i * VALUES + digits)
        larger = above + tl.cumsum(weights, 0, reverse=True) - weights  # falls as the digit grows, to ``above``
        digit = tl.min(tl.where(larger < limit, digits, VALUES), 0)
        above = tl.sum(tl.where(digits == digit, larger, 0), 0)
        prefix = prefix << DIGIT | digit
    return prefix


@triton.jit
def _weigh_digit(
    probs_ptr, limit_ptr, weights_ptr, V, BY_MASS: tl.constexpr, FOUND: tl.constexpr, DIGITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Adds a chunk's part to the weights of the values of digit ``FOUND``; ``weights`` [R, DIGITS, VALUES]."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    weights_ptr += row * DIGITS * VALUES
    limit = _limit(limit_ptr, row, BY_MASS)
    prefix = _found(weights_ptr, limit, FOUND)
    x = _load(probs_ptr, row, chunk * CHUNK + tl.arange(0, CHUNK), V)
    bits = tl.minimum(x.to(tl.int32, bitcast=True), LARGEST)
    taking_part = (bits >> (BITS - DIGIT * FOUND) == prefix) & (x > 0.0) & (limit < EVERYTHING)
    if tl.sum(taking_part.to(tl.int32), 0) > 0:  # as a rule most chunks have none after the first digits
        digit = bits >> (BITS - DIGIT * (FOUND + 1)) & (VALUES - 1)
        if BY_MASS:
            weight = (x * ONE).to(tl.int64)
        else:
            weight = tl.full((CHUNK,), 1, tl.int64)
        weight = tl.where(taking_part, weight, 0)
        for value in tl.static_range(VALUES):
            tl.atomic_add(weights_ptr + FOUND * VALUES + value, tl.sum(tl.where(digit == value, weight, 0), 0))


@triton.jit
def _best_of_chunk(probs_ptr, best_ptr, V, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = _load(probs_ptr, row, chunk * CHUNK + tl.arange(0, CHUNK), V)
    tl.store(best_ptr + row * tl.num_programs(1) + chunk, tl.max(x, 0))


@triton.jit
def _kept_of_chunk(
    probs_ptr, limit_ptr, found_ptr, threshold_ptr, kept_ptr, V, RULE: tl.constexpr, DIGITS: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The sum of what stays of a chunk. ``found``: the weights of all digits, or the best of each chunk (min_p)."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.num_programs(1)
    if RULE == "min_p":
        other = tl.arange(0, CHUNKS)
        best = tl.load(found_ptr + row * chunks + other, mask=other < chunks, other=0.0)
        threshold = tl.load(limit_ptr + row) * tl.max(best, 0)
    else:
        limit = _limit(limit_ptr, row, RULE == "top_p")
        threshold = _found(found_ptr + row * DIGITS * VALUES, limit, DIGITS).to(tl.float32, bitcast=True)
    if chunk == 0:
        tl.store(threshold_ptr + row, threshold)
    x = _load(probs_ptr, row, chunk * CHUNK + tl.arange(0, CHUNK), V)
    tl.store(kept_ptr + row * chunks + chunk, tl.sum(tl.where(x >= threshold, x, 0.0), 0))


@triton.jit
def _keep(probs_ptr, threshold_ptr, kept_ptr, y_ptr, V, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Writes what stays, so that every row sums to one again; a row of zeros stays as it is."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    other = tl.arange(0, CHUNKS)
    chunks = tl.num_programs(1)
    total = tl.sum(tl.load(kept_ptr + row * chunks + other, mask=other < chunks, other=0.0), 0)
    threshold = tl.load(threshold_ptr + row)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _load(probs_ptr, row, column, V)
    kept = tl.where(x >= threshold, x, 0.0) / tl.where(total > 0.0, total, 1.0)
    tl.store(y_ptr + row * V + column, kept, mask=column < V)


def top_k(probs: torch.Tensor, k: torch.Tensor, y: torch.Tensor) -> None:
    """Keeps the ``k`` [R] most probable tokens of each row, and all that tie with the last; ``k <= 0`` keeps all."""
    _filter("top_k", probs, k, y)


def top_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Keeps the fewest most probable tokens whose sum reaches ``p`` [R], and all that tie with the last."""
    _filter("top_p", probs, p, y)


def min_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Keeps tokens that are at least ``p`` [R] times as probable as the best of their row."""
    _filter("min_p", probs, p, y)


def _filter(rule: str, probs: torch.Tensor, limit: torch.Tensor, y: torch.Tensor) -> None:
    """``y`` [R, V] may be ``probs``: only the last launch writes it."""
    rows, vocab = probs.shape
    if not rows:
        return
    chosen, chunks, block = chunked(rule, vocab)
    found = _best(probs, chosen, chunks) if rule == "min_p" else _weights(rule, probs, limit, chosen, chunks)
    threshold = torch.empty(rows, dtype=torch.float32, device=probs.device)
    kept = torch.empty((rows, chunks), dtype=torch.float32, device=probs.device)
    grid, options = (rows, chunks), {**chosen.options, **block}
    _kept_of_chunk[grid](probs, limit, found, threshold, kept, vocab, RULE=rule, DIGITS=DIGITS, **options)
    _keep[grid](probs, threshold, kept, y, vocab, **options)


def _best(probs: torch.Tensor, chosen: Config, chunks: int) -> torch.Tensor:
    """The largest probability of each chunk, [R, chunks]."""
    rows, vocab = probs.shape
    best = torch.empty((rows, chunks), dtype=torch.float32, device=probs.device)
    _best_of_chunk[(rows, chunks)](probs, best, vocab, **chosen.options)
    return best


def _weights(rule: str, probs: torch.Tensor, limit: torch.Tensor, chosen: Config, chunks: int) -> torch.Tensor:
    """What the values of each digit weigh among tokens that have the threshold's digits before it."""
    rows, vocab = probs.shape
    weights = torch.zeros((rows, DIGITS, VALUES.value), dtype=torch.int64, device=probs.device)
    by_mass = rule == "top_p"
    for digit in range(DIGITS):
        _weigh_digit[(rows, chunks)](
            probs, limit, weights, vocab, BY_MASS=by_mass, FOUND=digit, DIGITS=DIGITS, **chosen.options
        )
    return weights
