"""Memory as kernels see it: one address, viewed as numpy, torch or a number, without copies.

Views are made when a kernel is bound, never in a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.dims import Shape, Sym, concrete


@dataclass(frozen=True)
class Operand:
    """One argument of a bound kernel.

    Attributes:
        array: the whole of it, at its largest size; a step uses the leading part that its dims say.
        shape: the symbolic shape; only a leading dimension may be symbolic.
    """

    name: str
    array: np.ndarray[Any, Any]
    shape: Shape

    @property
    def address(self) -> int:
        """Where it begins, in bytes."""
        return int(self.array.ctypes.data)

    @property
    def leading(self) -> str | None:
        """The step dimension that its first axis follows, or None where its size is fixed."""
        return self.shape[0].name if self.shape and isinstance(self.shape[0], Sym) else None

    def view(self, kind: str) -> Any:
        """The array itself, or a torch tensor over the same memory (read-only memory too: kernels don't write to
        weights)."""
        return self.array if kind == "numpy" else as_torch(self.array)


def as_torch(array: np.ndarray[Any, Any]) -> Any:
    """A CPU torch tensor over ``array``'s memory; bfloat16 included."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def aligned(nbytes: int, alignment: int = 64) -> np.ndarray[Any, Any]:
    """A zeroed uint8 array of ``nbytes`` that begins on an ``alignment`` boundary; pages are taken only when
    touched."""
    block = np.zeros(nbytes + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    return block[start : start + nbytes]


def view_of(block: np.ndarray[Any, Any], offset: int, shape: Shape, dtype: str, sizes: Mapping[str, int]) -> Any:
    """``shape`` elements of ``dtype`` at byte ``offset`` of ``block``."""
    dims = concrete(shape, sizes)
    kind = np.dtype(dtype)
    return np.ndarray(dims, kind, buffer=block, offset=offset)
