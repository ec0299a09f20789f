"""Orders of a head's elements in which threads take int8 operands of a product from shared memory in wide loads.

``mma`` of NVIDIA's tensor cores gives each thread operand elements that lie far apart: codes that are turned into
floating-point numbers in registers would be fetched one or four bytes at a time, and fetching them would take longer
than memory does. But the order of the elements that a product sums over is free, as long as both operands have it; and
that of a result's columns is undone where the result is stored. So the elements that one thread owns are made those
that lie side by side. Four warps side by side are assumed; with others the result is the same, and slower.

A head has ``DIM`` elements, a power of two of at least 16. Positions are places in an operand, elements those in
memory.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def summed_elements(DIM: tl.constexpr):
    """The element at each of the ``DIM`` positions that :func:`reorder_summed` makes."""
    RUN: tl.constexpr = min(4, DIM // 16)
    position = tl.arange(0, DIM)
    run, thread = position // 16 % RUN, position // 4 % 4
    return position // (16 * RUN) * (16 * RUN) + thread * (4 * RUN) + run * 4 + position % 4


@triton.jit
def reorder_summed(x):
    """``x`` [rows, DIM], over whose columns is summed: in steps of 16, of which each of 4 threads owns 4."""
    ROWS: tl.constexpr = x.shape[0]
    DIM: tl.constexpr = x.shape[1]
    RUN: tl.constexpr = min(4, DIM // 16)
    parts = tl.reshape(x, [ROWS, DIM // (16 * RUN), 4, RUN, 4])  # …, thread, run, 4
    return tl.reshape(tl.permute(parts, [0, 1, 3, 2, 4]), [ROWS, DIM])


@triton.jit
def column_elements(DIM: tl.constexpr):
    """The element at each of the ``DIM`` positions that :func:`reorder_columns` makes."""
    RUN: tl.constexpr = max(1, min(4, DIM // 32))
    position = tl.arange(0, DIM)
    return position % (DIM // RUN) * RUN + position // (DIM // RUN)


@triton.jit
def reorder_columns(x):
    """``x`` [rows, DIM], whose columns are a result's: a warp owns 8 of every 32, and a thread one of these."""
    ROWS: tl.constexpr = x.shape[0]
    DIM: tl.constexpr = x.shape[1]
    RUN: tl.constexpr = max(1, min(4, DIM // 32))
    return tl.reshape(tl.permute(tl.reshape(x, [ROWS, DIM // RUN, RUN]), [0, 2, 1]), [ROWS, DIM])
