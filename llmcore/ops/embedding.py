"""Token embedding: rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(inputs=["ids: i32[T]"], weights=["weight: any[V, D]"], outputs=["y: act[T, D]"])
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Row ``ids[t]`` of ``weight`` for every token."""
    return weight[ids.long()].float()
