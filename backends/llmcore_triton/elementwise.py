"""The residual sum, the gated activation, and the choice of rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config, warps

BLOCK = 1024  # elements of a program


@triton.jit
def _add(a_ptr, b_ptr, y_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    a = tl.load(a_ptr + at, mask=mask).to(tl.float32)
    b = tl.load(b_ptr + at, mask=mask).to(tl.float32)
    tl.store(y_ptr + at, (a + b).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def silu(x):
    """``x * sigmoid(x)``; where ``exp`` overflows, the quotient is zero."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _swiglu(gate_ptr, up_ptr, y_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (silu(gate) * up).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gather(x_ptr, rows_ptr, y_ptr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Part of row ``rows[r]``; also casts, so embeddings of plain tables are gathered by it."""
    r = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + r).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < D
    values = tl.load(x_ptr + row * D + column, mask=mask)
    tl.store(y_ptr + r * D + column, values.to(y_ptr.dtype.element_ty), mask=mask)


def add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """``y = a + b``; ``y`` may be either."""
    _launch(_add, "add", a, b, y)


def swiglu(gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    """``y = silu(gate) * up``; ``y`` may be either."""
    _launch(_swiglu, "swiglu", gate, up, y)


def gather(x: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> None:
    """``y[r] = x[rows[r]]``, in the type of ``y``."""
    count, width = y.shape
    if y.numel():
        block = min(triton.next_power_of_2(width), BLOCK)
        chosen = config("gather", (count, width), Config({"BLOCK": block}, num_warps=warps(block)))
        _gather[(count, triton.cdiv(width, chosen.meta["BLOCK"]))](x, rows, y, D=width, **chosen.options)


def _launch(kernel: Any, name: str, a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """One program for each ``BLOCK`` elements, whatever the rows are."""
    size = y.numel()
    if size:
        chosen = config(name, tuple(y.shape), Config({"BLOCK": BLOCK}, num_warps=warps(BLOCK)))
        kernel[(triton.cdiv(size, chosen.meta["BLOCK"]),)](a, b, y, size, **chosen.options)
