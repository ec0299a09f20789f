"""The weights of one model as its kernels read them: mapped where possible, repacked where a kernel asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmcore.device import HOST, Device
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

    On an accelerator every weight that a kernel reads is copied there, one at a time; the host keeps none.

    Attributes:
        made: repacks, where kernels read them.
        mapped: the tensors that kernels read as they lie in the file.
        cache: where repacks are kept for the next start; None keeps nothing.
        threads: that repack.
    """

    tensors: Mapping[str, Tensor]
    made: dict[Key, Any] = field(default_factory=dict)
    mapped: dict[str, Any] = field(default_factory=dict)
    slabs: Slabs = field(default_factory=Slabs)
    cache: PackedCache | None = None
    threads: int = 1
    device: Device = HOST

    def format(self, key: str) -> str:
        """The format of tensor ``key``."""
        return self.tensors[key].format.name

    def float32(self, key: str) -> Any:
        """A small tensor (norm, bias) as float32: the mapping itself if it is float32 there."""
        tensor = self.tensors[key]
        if tensor.format.name == "F32":
            return self._mapped(key, tensor.numpy())
        return self._make((key, "float32", 1), tensor.dequantize)

    def operand(self, key: str, kernel: KernelInfo) -> Any:
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
                self.made.update(zip(kept, map(self.device.put, arrays), strict=True))
                kept = {}
        packed = pack_all([*kept.values(), *others.values()], self.threads)
        for repack_key, array in zip((*kept, *others), packed, strict=True):
            self.made[repack_key] = self._placed(array)

    def _repack(self, key: str, kernel: KernelInfo) -> Repack:
        return Repack(self.tensors[key], kernel.pack, kernel.layout or (kernel.pack, 0))

    def _mapped(self, key: str, array: Array) -> Any:
        if self.device is HOST:
            self.mapped[key] = array
        elif key not in self.mapped:
            self.mapped[key] = self.device.put(array)
            self.tensors[key].forget()
        return self.mapped[key]

    def _make(self, key: Key, make: Callable[[], Array]) -> Any:
        if key not in self.made:
            self.made[key] = self._placed(np.ascontiguousarray(make()))
        return self.made[key]

    def _placed(self, array: Array) -> Any:
        return self.slabs.place(array) if self.device is HOST else self.device.put(array)

    def read_mapped(self) -> None:
        """Reads a byte of every page that kernels read from the mapped files: no step waits for the disk later."""
        if self.device is not HOST:
            return
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
