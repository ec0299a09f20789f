"""Symbolic dimensions: sizes that change from step to step.

A dimension is an ``int`` that the model fixes, or a :class:`Sym` that the batch of each step fixes: ``T`` tokens,
``S`` sequences, ``R`` rows whose logits are wanted. ``Sym("T", 9)`` is nine times ``T``: what the leading
dimension becomes when ``[T, 9 * 64]`` is viewed as ``[T * 9, 64]``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Sym:
    """``times`` × the step's value of ``name``."""

    name: str
    times: int = 1

    def __str__(self) -> str:
        return self.name if self.times == 1 else f"{self.times}{self.name}"

    def __mul__(self, factor: int) -> Sym:
        return Sym(self.name, self.times * factor)


Dim = int | Sym
Shape = tuple[Dim, ...]

T = Sym("T")  # tokens in the step, over all sequences
S = Sym("S")  # sequences in the step
R = Sym("R")  # rows whose logits are computed

STEP_DIMS = ("T", "S", "R")  # their slots in a step block, in this order


def extent(dim: Dim, sizes: dict[str, int]) -> int:
    """The size of ``dim`` where each step dimension has the value in ``sizes``."""
    return dim if isinstance(dim, int) else dim.times * sizes[dim.name]


def elements(shape: Shape, sizes: dict[str, int]) -> int:
    """The number of elements of ``shape`` under ``sizes``."""
    count = 1
    for dim in shape:
        count *= extent(dim, sizes)
    return count
