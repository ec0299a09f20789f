"""Ops that treat every element or row by itself: the residual sum, the gated activation, the choice of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(inputs=["a: act[M, D]", "b: act[M, D]"], outputs=["y: act[M, D]"], inplace={"y": ("a", "b")})
def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``."""
    return a.float() + b.float()


@op(inputs=["gate: act[M, F]", "up: act[M, F]"], outputs=["y: act[M, F]"], inplace={"y": ("gate", "up")})
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (Shazeer 2020, arXiv:2002.05202)."""
    gate = gate.float()
    return gate * gate.sigmoid() * up.float()


@op(inputs=["x: act[T, D]", "rows: i32[R]"], outputs=["y: act[R, D]"])
def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Row ``rows[r]`` of ``x`` for every wanted row."""
    return x[rows.long()].float()
