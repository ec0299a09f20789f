"""Symbolic dimensions: sizes that change from step to step.

A dimension is an ``int`` that the model fixes, or a :class:`Sym` that the batch of each step fixes: ``T`` tokens, ``S``
sequences, ``R`` rows whose logits are wanted. A program is built for the largest values; a step runs with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Sym:
    """A dimension named ``name`` that every step sets anew."""

    name: str

    def __str__(self) -> str:
        return self.name


Dim = int | Sym
Shape = tuple[Dim, ...]

T = Sym("T")  # tokens in the step, over all sequences
S = Sym("S")  # sequences in the step
R = Sym("R")  # rows whose logits are computed

STEP_DIMS = (T, S, R)  # their slots in a step block, in this order


class Bounds(dict[str, int]):
    """The largest step that a program is built for: step dimension → size.

    Attributes:
        one_each: every sequence has one new token, token ``t`` that of sequence ``t``, and a step has exactly these
            sizes: what a recorded run of a decode step needs.
    """

    def __init__(self, sizes: Mapping[str, int], *, one_each: bool = False) -> None:
        """The bounds ``sizes``."""
        super().__init__(sizes)
        self.one_each = one_each


def extent(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size of ``dim`` where each step dimension has the value in ``sizes``."""
    return sizes[dim.name] if isinstance(dim, Sym) else dim


def concrete(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """``shape`` with every step dimension replaced by its value in ``sizes``."""
    return tuple(extent(dim, sizes) for dim in shape)
