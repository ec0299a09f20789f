"""RMS normalisation of rows or of single heads, and of a residual sum; each reads and writes its rows once.

A program takes as many groups as make up a block, or one group in several steps where it is wider than a block: then
the second pass over it comes from the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config, warps

WIDEST = 16384  # elements of a group that a program holds at once
BLOCK = 2048  # elements of a program where groups are narrower: 16 heads of 128


@triton.jit
def _rms_norm(
    x_ptr, b_ptr, weight_ptr, total_ptr, y_ptr, groups, eps, C: tl.constexpr,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``ROWS`` groups of ``C <= COLUMNS`` elements; ``ADD``: of ``x + b``, which goes to ``total``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (row < groups) & (column < C)
    at = row * C + column
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    if ADD:
        total = x + tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rounded = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, rounded, mask=mask)
        x = rounded.to(tl.float32)  # what the next layer adds to is what is normed, as where ops are apart
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / C + eps)  # [ROWS]
    weight = tl.load(weight_ptr + column, mask=column < C, other=0.0)
    tl.store(y_ptr + at, (x * scale[:, None] * weight).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_wide(
    x_ptr, b_ptr, weight_ptr, total_ptr, y_ptr, eps, C: tl.constexpr, ADD: tl.constexpr, COLUMNS: tl.constexpr
):
    """One group of ``C`` elements, ``COLUMNS`` at a time."""
    start = tl.program_id(0).to(tl.int64) * C
    column = tl.arange(0, COLUMNS)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, C, COLUMNS):
        mask = first + column < C
        at = start + first + column
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            total = (x + tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)).to(total_ptr.dtype.element_ty)
            tl.store(total_ptr + at, total, mask=mask)
            x = total.to(tl.float32)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares) / C + eps)
    source_ptr = x_ptr
    if ADD:
        tl.debug_barrier()  # the sums are read by other threads than have written them
        source_ptr = total_ptr
    for first in range(0, C, COLUMNS):
        mask = first + column < C
        x = tl.load(source_ptr + start + first + column, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + first + column, mask=mask, other=0.0)
        tl.store(y_ptr + start + first + column, (x * scale * weight).to(y_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float) -> None:
    """Divides every group of ``C = len(weight)`` elements of ``x`` [M, D] by its RMS; ``y`` may be ``x``."""
    _launch("rms_norm", x, None, weight, None, y, eps)


def add_rms_norm(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, total: torch.Tensor, y: torch.Tensor, *, eps: float
) -> None:
    """``total = a + b`` and its norm; ``total`` may be ``a`` or ``b``.

    ``y`` has the bits that ``add`` and ``rms_norm`` make one after the other.
    """
    _launch("add_rms_norm", a, b, weight, total, y, eps)


def _launch(
    name: str,
    x: torch.Tensor,
    b: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
) -> None:
    width = weight.shape[0]
    groups = x.numel() // width
    if not groups:
        return
    columns = min(triton.next_power_of_2(width), WIDEST)
    rows = max(1, min(BLOCK // columns, triton.next_power_of_2(groups)))
    wide = width > WIDEST
    block = {} if wide else {"ROWS": rows}
    chosen = config(f"{name}{'_wide' * wide}", (groups, width), Config(block, num_warps=warps(rows * columns)))
    options: dict[str, Any] = {**chosen.options, "COLUMNS": columns, "C": width, "ADD": b is not None}
    if wide:
        _rms_norm_wide[(groups,)](x, b, weight, total, y, eps, **options)
    else:
        _rms_norm[(triton.cdiv(groups, chosen.meta["ROWS"]),)](x, b, weight, total, y, groups, eps, **options)
