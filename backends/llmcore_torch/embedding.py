"""Token embedding: only the rows that the step needs are read and converted."""

from __future__ import annotations

from torch import Tensor


def embedding(ids: Tensor, weight: Tensor, y: Tensor) -> None:
    """Gathers row ``ids[t]`` of ``weight`` [V, D] into ``y`` [T, D]; float16 and bfloat16 rows widen on the way."""
    y.copy_(weight.index_select(0, ids))
