"""The weights of one model as its kernels read them: mapped where possible, repacked where a kernel asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmcore.graph.packing import Key, PackedCache, Repack, pack_all
from llmcore.graph.slabs import Slabs
from llmcore.hookspecs import KernelInfo
from llmcore.weights.tensor import Tensor

Array = np.ndarray[Any, Any]
PAGE = 4096  # bytes, at least


@dataclass
class WeightStore:
    """Tensors of a checkpoint by name, and what was made of them.

    Every repack is kept under (tensor, layout name, layout version), so that programs of all buckets and a tied table
    share it.

    Attributes:
        cache: where repacks are kept for the next start; None keeps nothing.
        threads: that repack.
    """

    tensors: Mapping[str, Tensor]
    made: dict[Key, Array] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)
    slabs: Slabs = field(default_factory=Slabs)
    cache: PackedCache | None = None
    threads: int = 1

    def format(self, key: str) -> str:
        """The format of tensor ``key``."""
        return self.tensors[key].format.name

    def float32(self, key: str) -> Array:
        """A small tensor (norm, bias) as float32: the mapping itself if it is float32 there."""
        tensor = self.tensors[key]
        if tensor.format.name == "F32":
            return self._mapped(key, tensor.numpy())
        return self._make((key, "float32", 1), tensor.dequantize)

    def operand(self, key: str, kernel: KernelInfo) -> Array:
        """A weight as ``kernel`` reads it: repacked by the kernel's own function, or as it lies in the file."""
        tensor = self.tensors[key]
        if kernel.pack:
            repack = self._repack(key, kernel)
            return self._make(repack.key, repack.make)
        if tensor.format.block == 1:
            return self._mapped(key, tensor.numpy())
        return self._mapped(key, tensor.raw().reshape(math.prod(tensor.shape[:-1]), -1))  # [N, row bytes]

    def prepare(self, wanted: Iterable[tuple[str, KernelInfo]]) -> None:
        """Makes what :meth:`operand` will be asked for, all at once: mapped from the cache, or repacked by all threads.

        Raises:
            CheckpointError: a file has changed since it was opened.
        """
        kept: dict[Key, Repack] = {}
        others: dict[Key, Repack] = {}
        for key, kernel in wanted:
            if kernel.pack and (repack := self._repack(key, kernel)).key not in self.made:
                (kept if kernel.keep else others)[repack.key] = repack
        if kept and self.cache is not None:
            arrays = self.cache.arrays(list(kept.values()), self.threads)
            if arrays is not None:
                self.made.update(zip(kept, arrays, strict=True))
                kept = {}
        packed = pack_all([*kept.values(), *others.values()], self.threads)
        for repack_key, array in zip((*kept, *others), packed, strict=True):
            self.made[repack_key] = self.slabs.place(array)

    def _repack(self, key: str, kernel: KernelInfo) -> Repack:
        return Repack(self.tensors[key], kernel.pack, kernel.layout or (kernel.pack, 0))

    def _mapped(self, key: str, array: Array) -> Array:
        self.mapped.add(key)
        return array

    def _make(self, key: Key, make: Callable[[], Array]) -> Array:
        if key not in self.made:
            self.made[key] = self.slabs.place(np.ascontiguousarray(make()))
        return self.made[key]

    def read_mapped(self) -> None:
        """Reads a byte of every page that kernels read from the mapped files: no step waits for the disk later."""
        for key in sorted(self.mapped):
            self.tensors[key].raw().reshape(-1).view(np.uint8)[::PAGE].max(initial=0)

    @property
    def mapped_bytes(self) -> int:
        """Bytes that kernels read from the mapped files."""
        return sum(self.tensors[key].nbytes for key in self.mapped)

    @property
    def repacked_bytes(self) -> int:
        """Bytes that repacks and conversions take: private memory, or mapped from the cache."""
        return sum(array.nbytes for array in self.made.values())
