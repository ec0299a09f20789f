"""Weights as floats again: whole matrices for products of many tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import warps
from llmcore_triton.linear_plan import form_of_weight
from llmcore_triton.packed import EIGHT, HALVES, MINIMA, UNIT, codes_at, factors_at, magic_of, values_of

ROWS, COLUMNS = 8, 512  # of a program


@triton.jit
def dequantize_kernel(weight, y, N, K, FORM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """``y`` [N, K] = the packed matrix ``weight``; one tile a program."""
    WORDS: tl.constexpr = 8 if EIGHT & FORM else 4
    FIELDS: tl.constexpr = 4 if EIGHT & FORM else 8
    GROUPS: tl.constexpr = 2 if HALVES & FORM else 1
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    unit = tl.program_id(1) * (BK // UNIT) + tl.arange(0, BK // UNIT)
    known = unit < K // UNIT
    count, rows = tl.cast(N, tl.int64), tl.where(row < N, row, 0).to(tl.int64)
    magic = magic_of(K)
    words = codes_at(weight, rows, unit, known, K, FORM)
    column = unit[:, None] * UNIT + tl.arange(0, WORDS)[None, :]
    at = (rows * K)[:, None, None] + column[None, :, :]
    mask = (row < N)[:, None, None] & known[None, :, None]
    for half in tl.static_range(0, GROUPS):
        scales = factors_at(weight, count, rows, unit, known, K, half, False, FORM)
        minima = scales
        if MINIMA & FORM:
            minima = factors_at(weight, count, rows, unit, known, K, half, True, FORM)
        for f in tl.static_range(half * (FIELDS // GROUPS), (half + 1) * (FIELDS // GROUPS)):
            values = values_of(words, magic, scales, minima, f, FORM)
            tl.store(y + at + f * WORDS, values.to(y.dtype.element_ty), mask=mask)


def dequantized(weight: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` [N, K] as ``dtype``: itself if it is, else in new memory; packed weights have ``columns`` columns."""
    form = form_of_weight(weight, columns)
    if not form:
        return weight.to(dtype)
    rows = weight.shape[0]
    y = torch.empty((rows, columns), dtype=dtype, device=weight.device)
    grid = triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)
    many = warps(ROWS * COLUMNS, each=32)  # 16 bytes of codes of 4 bits
    dequantize_kernel[grid](weight, y, rows, columns, FORM=form, BN=ROWS, BK=COLUMNS, num_warps=many)
    return y
