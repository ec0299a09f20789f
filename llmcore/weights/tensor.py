"""A tensor of a checkpoint: a named, typed, read-only view of a mapped file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.errors import CheckpointError
from llmcore.weights.formats import TensorFormat, computable
from llmcore.weights.mapping import MappedFile
from llmcore.weights.quants import Bytes, Floats


class Tensor:
    """A lazily mapped, read-only tensor.

    Args:
        name: its canonical name.
        shape: row-major, outermost first: a linear weight is ``(out, in)``.
        format: how its elements are stored; blocks run along the innermost axis.
        mapping: the file that holds it.
        offset: where in the file its bytes start; the reader has checked that they end within it.
        stored_name: its name in the file, for messages, where that differs.
    """

    __slots__ = ("format", "mapping", "name", "nbytes", "offset", "shape", "stored_name")

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        format: TensorFormat,
        mapping: MappedFile,
        offset: int,
        stored_name: str = "",
    ) -> None:
        self.name = name
        self.shape = shape
        self.format = format
        self.mapping = mapping
        self.offset = offset
        self.nbytes = format.nbytes(math.prod(shape))
        self.stored_name = stored_name or name

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.shape}, {self.format.name}, {self.file.name}@{self.offset})"

    @property
    def file(self) -> Path:
        """The file that holds it."""
        return self.mapping.path

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def raw(self) -> Bytes:
        """The stored bytes, uint8 ``[nbytes]``: a view of the mapping, not writable."""
        return self.mapping.bytes[self.offset : self.offset + self.nbytes]

    def numpy(self) -> npt.NDArray[Any]:
        """The elements in :attr:`shape`, a view of the mapping in the stored type (``ml_dtypes.bfloat16`` for BF16).

        Raises:
            CheckpointError: the tensor is quantized, or its type has no numpy counterpart.
        """
        if not self.format.plain:
            raise self._error(f"is stored as {self.format.name}, which has no numpy type", "use dequantize()")
        if self.format.plain == "bfloat16":
            import ml_dtypes

            dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            dtype = np.dtype(self.format.plain)
        array: npt.NDArray[Any] = self.raw().view(dtype).reshape(self.shape)
        return array

    def dequantize(self) -> Floats:
        """The elements as float32 in :attr:`shape`: a private copy.

        Raises:
            CheckpointError: no op computes with this format (integers, unknown quantizations).
        """
        if self.format.decode is None:
            raise self._error(f"is stored as {self.format.name}, which we do not compute with", computable())
        return self.format.dequantize(self.raw(), self.size).reshape(self.shape)

    def check_finite(self) -> None:
        """Looks at every element (of a block format: every scale) for NaN and infinity.

        Raises:
            CheckpointError: one is not finite; names file, tensor, element and byte offset.
        """
        bad = self.format.first_non_finite(self.raw())
        if bad is None:
            return
        element, byte = bad
        index = tuple(int(i) for i in np.unravel_index(element, self.shape)) if self.shape else ()
        what = "the scale of the block at element" if self.format.quantized else "element"
        raise CheckpointError(
            f"{what} {list(index)} is not finite",
            file=self.file,
            tensor=self.name,
            offset=self.offset + byte,
            remedy="the file is damaged, or training had diverged: get it again from its source",
        )

    def forget(self) -> None:
        """Takes its pages out of this process, once it has been read and will not be soon again."""
        self.mapping.forget(self.offset, self.nbytes)

    def _error(self, message: str, remedy: str) -> CheckpointError:
        return CheckpointError(message, file=self.file, tensor=self.name, offset=self.offset, remedy=remedy)


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Raises :class:`CheckpointError` for the first of ``tensors`` that holds a NaN or an infinity."""
    for tensor in tensors:
        tensor.check_finite()
        tensor.forget()
