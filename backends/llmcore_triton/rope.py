"""Rotary position embedding by table look-up: a program turns some heads of one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config, warps

BLOCK = 1024  # elements of a program


@triton.jit
def _rope(
    x_ptr, positions_ptr, cos_ptr, sin_ptr, y_ptr, heads, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """``HEADS`` heads; ``BLOCK_REST``: at least as many elements as pass unchanged, 0 where none does."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = (token * heads + head) * HEAD_DIM  # [HEADS, 1]
    pair = tl.arange(0, BLOCK_PAIRS)
    angle = tl.load(positions_ptr + token).to(tl.int64) * PAIRS + pair
    cos = tl.load(cos_ptr + angle, mask=pair < PAIRS, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=pair < PAIRS, other=0.0)[None, :]
    if INTERLEAVED:
        both = tl.arange(0, 2 * BLOCK_PAIRS)[None, :]
        mask = (head < heads) & (both < 2 * PAIRS)
        x = tl.load(x_ptr + at + both, mask=mask, other=0.0).to(tl.float32)
        a, b = tl.split(x.reshape(HEADS, BLOCK_PAIRS, 2))  # [HEADS, BLOCK_PAIRS]
        turned = tl.join(a * cos - b * sin, b * cos + a * sin).reshape(HEADS, 2 * BLOCK_PAIRS)
        tl.store(y_ptr + at + both, turned.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        first, second = at + pair[None, :], at + PAIRS + pair[None, :]
        mask = (head < heads) & (pair < PAIRS)[None, :]
        a = tl.load(x_ptr + first, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + second, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + first, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y_ptr + second, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=mask)
    if BLOCK_REST:
        rest = 2 * PAIRS + tl.arange(0, BLOCK_REST)[None, :]
        mask = (head < heads) & (rest < HEAD_DIM)
        tl.store(y_ptr + at + rest, tl.load(x_ptr + at + rest, mask=mask), mask=mask)


def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    y: torch.Tensor,
    *,
    head_dim: int,
    interleaved: bool,
) -> None:
    """Turns the first ``2 * F`` elements of every head of ``x`` [T, H · head_dim]; ``y`` may be ``x``."""
    tokens, heads, pairs = x.shape[0], x.shape[1] // head_dim, cos.shape[1]
    if not x.numel():
        return
    wide = triton.next_power_of_2(head_dim)
    block = min(max(1, BLOCK // wide), triton.next_power_of_2(heads))
    chosen = config("rope", (tokens, heads, head_dim), Config({"HEADS": block}, num_warps=warps(block * wide, each=16)))
    rest = head_dim - 2 * pairs
    _rope[(tokens, triton.cdiv(heads, chosen.meta["HEADS"]))](
        x, positions, cos, sin, y, heads,
        HEAD_DIM=head_dim, PAIRS=pairs, INTERLEAVED=interleaved, BLOCK_PAIRS=triton.next_power_of_2(pairs),
        BLOCK_REST=triton.next_power_of_2(rest) if rest else 0, **chosen.options,
    )  # fmt: skip
