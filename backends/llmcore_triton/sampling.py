"""From logits to tokens, in two launches an op: parts of all rows at once, then what the parts of a row make.

A row is cut at the same places whoever shares the batch, so its sums, and with them its token, do not depend on that.
What NaN means, and a row in which no token can be chosen, is in :mod:`llmcore.ops.sampling`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config, warps

CHUNK = 4096  # elements of a row that a program takes
LARGEST = tl.constexpr(3.4028234663852886e38)
NAN_KEY = tl.constexpr(0x7FFFFFFF)  # above infinity's


@triton.jit
def ordered(x):
    """float32 → int32 of the same order; zeros of both signs are equal, NaN are not told apart from numbers."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


@triton.jit
def key(rank, index):
    """An int64 that is the larger, the larger ``rank`` is, and among equals the lower ``index`` is."""
    return rank.to(tl.int64) << 32 | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(keys):
    """The ``index`` of :func:`key`."""
    return 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _best_of_chunk(logits_ptr, keys_ptr, V, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf"))
    rank = tl.where(x != x, NAN_KEY, ordered(x))  # noqa: PLR0124
    best = tl.max(key(rank, column), 0)
    tl.store(keys_ptr + row * tl.num_programs(1) + chunk, best)


@triton.jit
def _best_of_row(keys_ptr, ids_ptr, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    keys = tl.load(keys_ptr + row * chunks + chunk, mask=chunk < chunks, other=-(2**63))
    best = tl.max(keys, 0)
    tl.store(ids_ptr + row, tl.where(best >> 32 == NAN_KEY, -1, index_of(best)))


@triton.jit
def known(x):
    """Logits without NaN, which cannot be chosen, and with the largest number for infinity."""
    return tl.where(x != x, float("-inf"), tl.minimum(x, LARGEST))  # noqa: PLR0124


@triton.jit
def weight(x, high, temperature):
    """``exp((x - high) / temperature)``: the difference comes first, as a quotient may overflow."""
    return tl.exp(tl.math.div_rn(x - high, temperature + tl.zeros_like(x)))


@triton.jit
def _weigh_chunk(logits_ptr, temperature_ptr, high_ptr, sum_ptr, V, CHUNK: tl.constexpr):
    """A chunk's largest logit, and the sum of the weights by it; ``temperature_ptr`` None is a temperature of 1."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = known(tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf")))
    high = tl.maximum(tl.max(x, 0), -LARGEST)
    temperature = 1.0
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row)
    at = row * tl.num_programs(1) + chunk
    tl.store(high_ptr + at, high)
    tl.store(sum_ptr + at, tl.sum(weight(x, high, temperature), 0))


@triton.jit
def _together(high_ptr, sum_ptr, row, chunks, temperature, CHUNKS: tl.constexpr):
    """A row's largest logit and sum of weights from those of its chunks (Milakov & Gimelshein 2018)."""
    chunk = tl.arange(0, CHUNKS)
    highs = tl.load(high_ptr + row * chunks + chunk, mask=chunk < chunks, other=-LARGEST)
    sums = tl.load(sum_ptr + row * chunks + chunk, mask=chunk < chunks, other=0.0)
    high = tl.max(highs, 0)
    return high, tl.sum(sums * weight(highs, high, temperature), 0)


@triton.jit
def _sums_of_row(high_ptr, sum_ptr, row_high_ptr, row_sum_ptr, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    high, total = _together(high_ptr, sum_ptr, row, chunks, 1.0, CHUNKS)
    tl.store(row_high_ptr + row, high)
    tl.store(row_sum_ptr + row, total)


@triton.jit
def _softmax(logits_ptr, temperature_ptr, high_ptr, sum_ptr, probs_ptr, V, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = known(tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf")))
    temperature = tl.load(temperature_ptr + row)
    high, total = _together(high_ptr, sum_ptr, row, tl.num_programs(1), temperature, CHUNKS)
    probs = weight(x, high, temperature) / tl.where(total > 0.0, total, 1.0)
    tl.store(probs_ptr + row * V + column, probs, mask=column < V)


@triton.jit
def _mass_of_chunk(probs_ptr, mass_ptr, V, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(probs_ptr + row * V + column, mask=column < V, other=0.0)
    tl.store(mass_ptr + row * tl.num_programs(1) + chunk, tl.sum(tl.where(x > 0.0, x, 0.0).to(tl.float64), 0))


@triton.jit
def _draw(probs_ptr, u_ptr, mass_ptr, ids_ptr, V, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Looks for the chunk in which the cumulative mass exceeds ``u`` times all of it, then for the token in it.

    Sums are of float64, yet a chunk's may round otherwise than the sum along it: then its last token is meant.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    mass = tl.load(mass_ptr + row * chunks + chunk, mask=chunk < chunks, other=0.0)
    reached = tl.cumsum(mass, 0)
    target = tl.load(u_ptr + row).to(tl.float64) * tl.max(reached, 0)
    found = tl.min(tl.where((reached > target) & (mass > 0.0), chunk, CHUNKS), 0)
    column = found * CHUNK + tl.arange(0, CHUNK)  # past the row where no token has any mass
    x = tl.load(probs_ptr + row * V + column, mask=column < V, other=0.0)
    x = tl.where(x > 0.0, x, 0.0).to(tl.float64)
    reached = tl.sum(tl.where(chunk < found, mass, 0.0), 0) + tl.cumsum(x, 0)
    first = tl.min(tl.where((reached > target) & (x > 0.0), column, V), 0)
    last = tl.max(tl.where(x > 0.0, column, 0), 0)
    tl.store(ids_ptr + row, tl.where(first < V, first, last))


def chunked(name: str, vocab: int) -> tuple[Config, int, dict[str, int]]:
    """How rows of ``vocab`` elements are cut, for op ``name``: the launch over chunks, how many, that over rows."""
    chunk = min(triton.next_power_of_2(vocab), CHUNK)
    chosen = config(name, (vocab,), Config({"CHUNK": chunk}, num_warps=warps(chunk, each=16)))
    chunks = triton.cdiv(vocab, chosen.meta["CHUNK"])
    return chosen, chunks, {"CHUNKS": triton.next_power_of_2(chunks)}


def argmax(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """The index of the largest of each row of ``logits`` [R, V], the lowest among equals; -1 where there is a NaN."""
    rows, vocab = logits.shape
    if not rows:
        return
    chosen, chunks, block = chunked("argmax", vocab)
    keys = torch.empty((rows, chunks), dtype=torch.int64, device=logits.device)
    _best_of_chunk[(rows, chunks)](logits, keys, vocab, **chosen.options)
    _best_of_row[(rows,)](keys, ids, chunks, **block)


def _weighed(name: str, logits: torch.Tensor, temperature: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of each chunk and its sum of weights, ``[R, chunks]`` float32."""
    rows, vocab = logits.shape
    chosen, chunks, _ = chunked(name, vocab)
    high, total = torch.empty((2, rows, chunks), dtype=torch.float32, device=logits.device)
    _weigh_chunk[(rows, chunks)](logits, temperature, high, total, vocab, **chosen.options)
    return high, total


def softmax(logits: torch.Tensor, temperature: torch.Tensor, probs: torch.Tensor) -> None:
    """``probs`` [R, V] of ``logits / temperature``; ``probs`` may be ``logits``."""
    rows, vocab = logits.shape
    if not rows:
        return
    high, total = _weighed("softmax", logits, temperature)
    chosen, chunks, block = chunked("softmax", vocab)
    _softmax[(rows, chunks)](logits, temperature, high, total, probs, vocab, **chosen.options, **block)


def exp_sum(logits: torch.Tensor, high: torch.Tensor, total: torch.Tensor) -> None:
    """Each row's largest logit, and the sum of the exponentials of all below it, both [R]."""
    rows, vocab = logits.shape
    if not rows:
        return
    highs, totals = _weighed("exp_sum", logits, None)
    _, chunks, block = chunked("exp_sum", vocab)
    _sums_of_row[(rows,)](highs, totals, high, total, chunks, **block)


def sample(probs: torch.Tensor, u: torch.Tensor, ids: torch.Tensor) -> None:
    """The first index of each row at which the cumulative probability exceeds ``u`` [R]; 0 where all is zero."""
    rows, vocab = probs.shape
    if not rows:
        return
    chosen, chunks, block = chunked("sample", vocab)
    mass = torch.empty((rows, chunks), dtype=torch.float64, device=probs.device)
    _mass_of_chunk[(rows, chunks)](probs, mass, vocab, **chosen.options)
    _draw[(rows,)](probs, u, mass, ids, vocab, chunks, **chosen.options, **block)
