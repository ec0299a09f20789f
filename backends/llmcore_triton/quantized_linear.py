"""Products of 8-bit codes: tokens are quantized as they come, each with its own scale, like the rows of the weight.

So a product of codes needs two factors only, after the sum: the matrix units multiply whole rows, and add in int32, or
in float32 where codes are float8 (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339, section 2, without its outliers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config, warps
from llmcore_triton.device import target
from llmcore_triton.linear import FINISH_WARPS, finish_block, finish_kernel
from llmcore_triton.linear_plan import parts_of
from llmcore_triton.linear_tile import store_tile, tile_of
from llmcore_triton.quantized_packing import FP8_LARGEST, INT8_LARGEST, padded


@dataclass(frozen=True)
class Kind:
    """A type of codes; ``largest`` of them."""

    name: str
    fp8: bool
    largest: int


INT8, FP8 = Kind("int8", False, INT8_LARGEST), Kind("fp8", True, FP8_LARGEST)


@triton.jit
def codes_of(pointer, FP8: tl.constexpr):
    """``pointer`` to bytes as one to codes."""
    if FP8:
        codes = pointer.to(tl.pointer_type(tl.float8e4nv))
    else:
        codes = pointer.to(tl.pointer_type(tl.int8))
    return codes


@triton.jit
def quantize_kernel(x, codes, scales, K, P, FP8: tl.constexpr, LARGEST: tl.constexpr, BK: tl.constexpr):
    """``codes`` [M, P], bytes, and ``scales`` [M] of the tokens ``x`` [M, K]; a program each.

    A token that holds NaN, or infinity, has NaN for its scale: all that is made of it is NaN.
    """
    token = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, BK)
    highest = tl.zeros([BK], tl.float32)
    spoilt = tl.zeros([BK], tl.float32)
    for first in range(0, K, BK):
        v = tl.load(x + token * K + first + inner, mask=first + inner < K, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, tl.abs(v))
        spoilt += v * 0.0
    scale = tl.max(highest, 0) / LARGEST
    scale = tl.where(scale > 0, scale, 1.0)
    tl.store(scales + token, scale + tl.sum(spoilt, 0))
    to = codes_of(codes, FP8) + token * P
    for first in range(0, P, BK):
        column = first + inner
        v = tl.load(x + token * K + column, mask=column < K, other=0.0).to(tl.float32) / scale
        v = tl.where(tl.abs(v) <= 2 * LARGEST, v, 0.0)  # NaN and infinity cannot be cast
        v = tl.minimum(tl.maximum(v, -LARGEST), LARGEST)  # which the largest is, up to a rounding
        if FP8:
            tl.store(to + column, v.to(tl.float8e4nv), mask=column < P)
        else:
            tl.store(to + column, tl.floor(v + 0.5).to(tl.int8), mask=column < P)


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def scaled_kernel(
    codes,
    scales,
    weight,
    bias,
    residual,
    y,
    partial,
    M,
    N,
    P,
    FP8: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """As :func:`llmcore_triton.linear.linear_kernel`, of codes [M, P] and a weight of :mod:`.quantized_packing`."""
    rows, tokens = tile_of(tl.program_id(0), M, BM, BN)
    part = tl.program_id(1)
    row = tl.where(rows < N, rows, 0).to(tl.int64)
    token = tl.where(tokens < M, tokens, 0).to(tl.int64)
    length = tl.cdiv(tl.cdiv(P, BK), SPLIT) * BK
    inner = tl.arange(0, BK)
    acc = tl.zeros([BN, BM], tl.float32 if FP8 else tl.int32)
    for first in range(part * length, tl.minimum((part + 1) * length, P), BK):
        column = first + inner
        w_at = codes_of(weight, FP8) + (row * P)[:, None] + column[None, :]
        v_at = codes_of(codes, FP8) + (token * P)[None, :] + column[:, None]
        if EVEN:
            w = tl.load(w_at)
            v = tl.load(v_at)
        else:
            w = tl.load(w_at, mask=(column < P)[None, :], other=0.0)
            v = tl.load(v_at, mask=(column < P)[:, None], other=0.0)
        if FP8:
            acc = tl.dot(w, v, acc, max_num_imprecise_acc=BK)  # Hopper adds in 14 bits, but for what leaves its units
        else:
            acc = tl.dot(w, v, acc, out_dtype=tl.int32)
    of_rows = (weight + tl.cast(N, tl.int64) * P).to(tl.pointer_type(tl.float32))
    factors = tl.load(of_rows + row)[:, None] * tl.load(scales + token)[None, :]
    store_tile(acc.to(tl.float32) * factors, bias, residual, y, partial, rows, tokens, M, N, part, SPLIT)


def scaled_linear(
    kind: Kind,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """``y = residual + x @ weight.T + bias`` on codes of ``kind``; ``y`` may be the memory of ``residual``."""
    (m, k), n = x.shape, y.shape[1]
    if not m:
        return
    width = padded(k)
    codes = torch.empty((m, width), dtype=torch.uint8, device=x.device)
    scales = torch.empty((m,), dtype=torch.float32, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    limits = {"FP8": kind.fp8, "LARGEST": float(kind.largest)}
    quantize_kernel[(m,)](x, codes, scales, k, width, BK=block, num_warps=warps(block), **limits)
    tokens, how = _tile(kind, m, n, width)
    inner, tiles = how.meta["BK"], -(-m // tokens) * -(-n // how.meta["BN"])
    split = parts_of(tiles, -(-width // inner), 2)
    partial = torch.empty((split, m, n), dtype=torch.float32, device=x.device) if split > 1 else None
    even = width % (inner * split) == 0
    scaled_kernel[tiles, split](
        codes,
        scales,
        weight,
        bias,
        residual,
        y,
        partial,
        m,
        n,
        width,
        FP8=kind.fp8,
        BM=tokens,
        SPLIT=split,
        EVEN=even,
        **how.options,
    )
    if split > 1:
        finish_kernel[(triton.cdiv(m * n, finish_block()),)](
            bias, residual, y, partial, m, n, SPLIT=split, BLOCK=finish_block(), num_warps=FINISH_WARPS
        )


def _tile(kind: Kind, m: int, n: int, width: int) -> tuple[int, Config]:
    """Tokens of a tile, and its other sizes."""
    tokens = next((size for size in (16, 32, 64) if m <= size), 128)
    wide = n >= 64 * 8
    stages = 3 if target().shared > 100_000 else 2
    default = Config(
        {"BN": 128 if tokens == 128 and wide else 64 if wide else 32, "BK": 128 if width >= 128 else 32},
        num_warps=8 if tokens == 128 and wide else 4,
        num_stages=stages if tokens == 128 else stages + 1,
    )
    return tokens, config(f"scaled-{kind.name}", (tokens, n, width), default)
