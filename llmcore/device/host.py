"""This machine's own memory, as numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import numpy as np

from llmcore.device.base import Array, Mirror, Reader, numpy_dtype


def as_torch(array: Array) -> Any:
    """A CPU torch tensor over ``array``'s memory; bfloat16 included."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def aligned(nbytes: int, alignment: int = 64) -> Array:
    """A zeroed uint8 array of ``nbytes`` that begins on an ``alignment`` boundary; pages are taken only when
    touched."""
    block = np.zeros(nbytes + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    return block[start : start + nbytes]


def nothing() -> None:
    """What there is to send or to wait for where memory is shared."""


ANYWHERE = nullcontext()


class Host:
    """The memory that processors compute in: nothing is ever copied."""

    kind = "cpu"
    name = "cpu"
    captures = False
    narrow = "bfloat16"

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Memory is taken as it is touched."""
        kind = numpy_dtype(dtype)
        return aligned(prod(shape) * kind.itemsize).view(kind).reshape(shape)

    def view(self, block: Array, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        """A view."""
        return np.ndarray(shape, numpy_dtype(dtype), buffer=block, offset=offset)

    def put(self, array: Array) -> Array:
        """``array`` itself: a mapped file stays mapped."""
        return array

    def fetch(self, array: Array) -> Array:
        """``array`` itself."""
        return array if array.dtype.kind in "iu" or array.itemsize > 2 else array.astype(np.float32)

    def reader(self, array: Array) -> Reader:
        """Nothing goes on meanwhile."""
        return lambda count: lambda: array[:count]

    def mirror(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Mirror:
        """One set of arrays for both sides."""
        arrays = {name: np.zeros(shape, numpy_dtype(dtype)) for name, (shape, dtype) in shapes.items()}
        return Mirror(arrays, arrays, nothing, nothing)

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        """The calls themselves."""
        return calls

    def free_memory(self) -> None:
        """Memory is given as it is touched."""

    def scope(self) -> AbstractContextManager[None]:
        """Nothing is to be done."""
        return ANYWHERE


HOST = Host()
