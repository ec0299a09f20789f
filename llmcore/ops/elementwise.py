"""Ops that treat every element or row by itself: the residual sum, the gated activation, the choice of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmcore.ops.base import Case, op
from llmcore.ops.cases import indices, row_cases

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@op(
    inputs=["a: act[M, D]", "b: act[M, D]"],
    outputs=["y: act[M, D]"],
    inplace={"y": ("a", "b")},
    cases=lambda: row_cases("M", "D"),
)
def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``."""
    return a.float() + b.float()


def _saturated(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Gates so large that exp of either sign overflows float32."""
    return {"gate": (rng.uniform(-200, 200, (dims["M"], dims["F"]))).astype("float32")}


def _swiglu_cases() -> Iterator[Case]:
    yield from row_cases("M", "F")
    yield Case({"M": 3, "F": 100}, inputs=_saturated, note="saturated gates")


@op(
    inputs=["gate: act[M, F]", "up: act[M, F]"],
    outputs=["y: act[M, F]"],
    inplace={"y": ("gate", "up")},
    cases=_swiglu_cases,
)
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (Shazeer 2020, arXiv:2002.05202)."""
    gate = gate.float()
    return gate * gate.sigmoid() * up.float()


def _gather_cases() -> Iterator[Case]:
    for tokens, width, rows in ((0, 64, 0), (5, 64, 0), (1, 7, 1), (7, 33, 3), (33, 576, 33), (4, 16, 9)):
        yield Case({"T": tokens, "D": width, "R": rows}, inputs=indices("rows", "R", below="T"))


@op(inputs=["x: act[T, D]", "rows: i32[R]"], outputs=["y: act[R, D]"], cases=_gather_cases)
def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Row ``rows[r]`` of ``x`` for every wanted row."""
    return x[rows.long()].float()
