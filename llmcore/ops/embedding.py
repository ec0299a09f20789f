"""Token embedding: rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcore.ops.base import Case, op
from llmcore.ops.cases import indices

if TYPE_CHECKING:
    from torch import Tensor


def _cases() -> Iterator[Case]:
    for tokens, vocab, width in ((0, 9, 256), (1, 1, 32), (1, 50, 256), (2, 9, 7), (7, 300, 96), (33, 17, 512)):
        yield Case({"T": tokens, "V": vocab, "D": width}, inputs=indices("ids", "T", below="V"))


@op(inputs=["ids: i32[T]"], weights=["weight: any[V, D]"], outputs=["y: act[T, D]"], cases=_cases)
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Row ``ids[t]`` of ``weight`` for every token."""
    return weight[ids.long()].float()
