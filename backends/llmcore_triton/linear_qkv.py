"""Three projections of the same tokens in one launch: queries, keys and values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.linear import FINISH_WARPS, few_product, finish_block, many, matrix_product, partials
from llmcore_triton.linear_plan import form_of_weight, plan
from llmcore_triton.linear_tile import finish_tile, product, store_tile, tile_of


@triton.jit
def project_tile(
    program,
    part,
    x,
    weight,
    bias,
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
    """A tile of one of the projections."""
    rows, tokens = tile_of(program, M, BM, BN)
    acc = product(x, weight, rows, tokens, M, N, K, part, FORM, BM, BN, BK, SPLIT, EVEN)
    store_tile(acc, bias, None, y, partial, rows, tokens, M, N, part, SPLIT)


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def project3_kernel(
    x,
    wq,
    wk,
    wv,
    bq,
    bk,
    bv,
    q,
    k,
    v,
    partial,
    M,
    D,
    G,
    K,
    FQ: tl.constexpr,
    FK: tl.constexpr,
    FV: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``q`` [M, D], ``k`` and ``v`` [M, G]: the first programs make queries, then come those of keys and of values.

    ``partial`` is float32 [SPLIT, M, D], then twice [SPLIT, M, G]; ``FQ``, ``FK``, ``FV`` are the weights' forms.
    """
    program, part = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(M, BM)
    of_q, of_k = blocks * tl.cdiv(D, BN), blocks * tl.cdiv(G, BN)
    keys = partial
    values = partial
    if SPLIT > 1:
        keys += SPLIT * tl.cast(M, tl.int64) * D
        values = keys + SPLIT * tl.cast(M, tl.int64) * G
    if program < of_q:
        project_tile(program, part, x, wq, bq, q, partial, M, D, K, FQ, BM, BN, BK, SPLIT, EVEN)
    elif program < of_q + of_k:
        project_tile(program - of_q, part, x, wk, bk, k, keys, M, G, K, FK, BM, BN, BK, SPLIT, EVEN)
    else:
        project_tile(program - of_q - of_k, part, x, wv, bv, v, values, M, G, K, FV, BM, BN, BK, SPLIT, EVEN)


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def finish3_kernel(bq, bk, bv, q, k, v, partial, M, D, G, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the parts that :func:`project3_kernel` made."""
    program = tl.program_id(0)
    of_q, of_k = tl.cdiv(M * D, BLOCK), tl.cdiv(M * G, BLOCK)
    keys = partial + SPLIT * tl.cast(M, tl.int64) * D
    if program < of_q:
        finish_tile(program, bq, None, q, partial, M, D, SPLIT, BLOCK)
    elif program < of_q + of_k:
        finish_tile(program - of_q, bk, None, k, keys, M, G, SPLIT, BLOCK)
    else:
        values = keys + SPLIT * tl.cast(M, tl.int64) * G
        finish_tile(program - of_q - of_k, bv, None, v, values, M, G, SPLIT, BLOCK)


def project3(
    x: torch.Tensor,
    wq: torch.Tensor,
    wk: torch.Tensor,
    wv: torch.Tensor,
    bq: torch.Tensor | None,
    bk: torch.Tensor | None,
    bv: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    """``q = x @ wq.T + bq`` and so on for ``k`` and ``v``, which are as wide as each other; any formats, any biases."""
    m, columns = x.shape
    if not m:
        return
    weights = wq, wk, wv
    if any(many(x, weight) for weight in weights):
        for weight, bias, y in zip(weights, (bq, bk, bv), (q, k, v), strict=True):
            one = matrix_product if many(x, weight) and y.dtype == x.dtype else few_product
            one(x, weight, bias, None, y)
        return
    d, g = q.shape[1], k.shape[1]
    how = plan(x, wq, d + 2 * g)
    partial = partials(how, x, m, d + 2 * g)
    forms = dict(zip(("FQ", "FK", "FV"), (form_of_weight(weight, columns) for weight in weights), strict=True))
    grid = how.programs(m, d) + 2 * how.programs(m, g), how.split
    project3_kernel[grid](x, *weights, bq, bk, bv, q, k, v, partial, m, d, g, columns, **forms, **how.constants)
    if how.split > 1:
        block = finish_block()
        launch = {"SPLIT": how.split, "BLOCK": block, "num_warps": FINISH_WARPS}
        programs = triton.cdiv(m * d, block) + 2 * triton.cdiv(m * g, block)
        finish3_kernel[(programs,)](bq, bk, bv, q, k, v, partial, m, d, g, **launch)
