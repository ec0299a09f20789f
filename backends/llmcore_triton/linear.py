"""Linear layers: our kernels for few tokens, the vendor's library for many; packed weights are unpacked for it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.device import target
from llmcore_triton.linear_plan import FEW, FEW_PACKED, Plan, form_of_weight, plan
from llmcore_triton.linear_tile import finish_tile, product, store_tile, tile_of
from llmcore_triton.packed_rows import dequantized

FINISH_WARPS = 2  # of a program that adds parts


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def linear_kernel(
    x,
    weight,
    bias,
    residual,
    y,
    partial,
    M,
    N,
    K,
    FORM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``y`` [M, N] = ``residual`` + ``x`` [M, K] @ ``weight`` [N, K].T + ``bias``; one tile and part a program."""
    rows, tokens = tile_of(tl.program_id(0), M, BM, BN)
    part = tl.program_id(1)
    acc = product(x, weight, rows, tokens, M, N, K, part, FORM, BM, BN, BK, SPLIT, EVEN)
    store_tile(acc, bias, residual, y, partial, rows, tokens, M, N, part, SPLIT)


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def finish_kernel(bias, residual, y, partial, M, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the parts that :func:`linear_kernel` made."""
    finish_tile(tl.program_id(0), bias, residual, y, partial, M, N, SPLIT, BLOCK)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = x @ weight.T + bias``; ``y`` may be float32 whatever ``x`` is, and is not rounded to its type then."""
    _linear(x, weight, bias, None, y)


def linear_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """``y = residual + x @ weight.T + bias``; ``y`` may be the memory of ``residual``."""
    _linear(x, weight, bias, residual, y)


def many(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``x`` has so many rows that the product is the library's."""
    return x.shape[0] > (FEW_PACKED if form_of_weight(weight, x.shape[1]) else FEW)


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    if not x.shape[0]:
        return
    if many(x, weight) and y.dtype == x.dtype:
        matrix_product(x, weight, bias, residual, y)
    else:
        few_product(x, weight, bias, residual, y)


def matrix_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """The product by torch's BLAS; a weight that is not of the tokens' type is unpacked to scratch memory first."""
    dense = dequantized(weight, x.shape[1], x.dtype).t()
    if residual is None:
        torch.mm(x, dense, out=y)
    else:
        torch.addmm(residual, x, dense, out=y)
    if bias is not None:
        y.add_(bias)


def few_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """The product by :func:`linear_kernel`, for any number of rows but zero."""
    (m, k), n = x.shape, y.shape[1]
    how = plan(x, weight, n)
    partial = partials(how, x, m, n)
    linear_kernel[how.programs(m, n), how.split](
        x, weight, bias, residual, y, partial, m, n, k, FORM=how.form, **how.constants
    )
    if how.split > 1:
        finish_kernel[(triton.cdiv(m * n, finish_block()),)](
            bias, residual, y, partial, m, n, SPLIT=how.split, BLOCK=finish_block(), num_warps=FINISH_WARPS
        )


def finish_block() -> int:
    """Elements of a program that adds parts: 16 bytes of float32 for each thread."""
    return FINISH_WARPS * target().warp * 4


def partials(how: Plan, x: torch.Tensor, m: int, n: int) -> torch.Tensor | None:
    """Memory for the parts of a product; None where it has one only."""
    return torch.empty((how.split, m, n), dtype=torch.float32, device=x.device) if how.split > 1 else None
