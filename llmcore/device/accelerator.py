"""An accelerator's memory, as torch tensors: CUDA's and ROCm's devices, both of which torch calls ``cuda``.

Torch's CPU can stand in for one: copies, views and sizes are the same then; pinned memory, events and graphs are a
GPU's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import cycle
from math import prod
from typing import Any

import numpy as np
import torch

from llmcore.device.base import Array, Mirror, Reader, numpy_dtype

STAGE = 32 << 20  # bytes of a piece of a weight on its way: two such buffers are pinned
ALIGNMENT = 64


class Accelerator:
    """One device of torch's.

    Attributes:
        device: torch's own name of it.
    """

    captures = True

    def __init__(self, device: str) -> None:
        """``device``: ``cuda``, ``cuda:1``; ``cpu`` for one that is played by the CPU.

        Raises:
            RuntimeError, AssertionError: torch's, where it has no such device.
        """
        found = torch.device(device)
        if found.type == "cuda":
            found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
            torch.cuda.get_device_properties(found)
        self.device = found
        self.kind = found.type
        self.name = str(found)
        self.asynchronous = found.type == "cuda"
        self.narrow = "bfloat16" if not self.asynchronous or torch.cuda.is_bf16_supported() else "float16"
        self._stream = torch.cuda.Stream(found) if self.asynchronous else None
        self._stages: list[tuple[torch.Tensor, Any]] = []
        self._pool: Any = None
        self._keeper: Any = None

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Memory is taken at once; that of models which nobody uses any more is collected first where it is needed."""
        kind = getattr(torch, dtype)
        try:
            return torch.zeros(shape, dtype=kind, device=self.device)
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
        try:
            return torch.zeros(shape, dtype=kind, device=self.device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"no room for {prod(shape) * kind.itemsize / 1e9:.2f} GB more") from error

    def view(self, block: torch.Tensor, offset: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """A view."""
        nbytes = prod(shape) * numpy_dtype(dtype).itemsize
        return block[offset : offset + nbytes].view(getattr(torch, dtype)).view(shape)

    def put(self, array: Array) -> torch.Tensor:
        """Copies ``array`` in pieces through two pinned buffers: one is filled while the other is on its way."""
        there = self.zeros(array.shape, array.dtype.name)
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        target = there.view(-1).view(torch.uint8) if array.size else there
        stages = cycle(self._staging())
        size = self._stages[0][0].numel()
        for start in range(0, source.size, size):
            stage, done = next(stages)
            piece = source[start : start + size]
            done.synchronize()
            stage[: piece.size].numpy()[...] = piece
            target[start : start + piece.size].copy_(stage[: piece.size], non_blocking=True)
            self._mark(done)
        return there

    def _staging(self) -> list[tuple[torch.Tensor, Any]]:
        if not self._stages:
            self._stages = [(self._pinned(STAGE), self._event()) for _ in range(2)]
        return self._stages

    def _pinned(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=self.asynchronous)

    def _event(self) -> Any:
        return torch.cuda.Event() if self.asynchronous else _Done()

    def _mark(self, event: Any) -> None:
        """Puts ``event`` behind all that this device was asked for."""
        event.record(torch.cuda.current_stream(self.device) if self.asynchronous else None)

    def fetch(self, array: torch.Tensor) -> Array:
        """A copy; waits for the device."""
        wide = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
        found: Array = wide.cpu().numpy() if self.asynchronous else wide.clone().numpy()
        return found

    def reader(self, array: torch.Tensor) -> Reader:
        """Two pinned buffers in turn."""
        nbytes = array.numel() * array.element_size()
        landings = cycle([(self._pinned(nbytes).view(array.dtype).view(array.shape), self._event()) for _ in range(2)])

        def start(count: int) -> Callable[[], Array]:
            landing, arrived = next(landings)
            landing[:count].copy_(array[:count], non_blocking=True)
            self._mark(arrived)

            def wait() -> Array:
                arrived.synchronize()
                return np.asarray(landing[:count].numpy())

            return wait

        return start

    def mirror(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Mirror:
        """One pinned block and its twin on the device, so that one copy, which nobody waits for, brings all."""
        places: dict[str, tuple[int, tuple[int, ...], str]] = {}
        end = 0
        for name, (shape, dtype) in shapes.items():
            places[name] = end, shape, dtype
            end += -(-prod(shape) * numpy_dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        here, there, done = self._pinned(end), self.zeros((end,), "uint8"), self._event()
        block = here.numpy()
        host = {
            name: np.ndarray(shape, numpy_dtype(dtype), buffer=block, offset=offset)
            for name, (offset, shape, dtype) in places.items()
        }

        def send() -> None:
            there.copy_(here, non_blocking=True)
            self._mark(done)

        views = {name: self.view(there, offset, shape, dtype) for name, (offset, shape, dtype) in places.items()}
        return Mirror(host, views, send, done.synchronize)

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what ``calls`` launches; graphs share the memory that calls take for themselves.

        What is launched must have been launched before: compiling in the middle of a capture is an error.
        """
        if not self.asynchronous:
            return calls
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._keep_pool()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            calls()
        replay: Callable[[], None] = graph.replay
        return replay

    def _keep_pool(self) -> None:
        """The memory that graphs share lives as long as one of them does: the first, which does nothing, is kept."""
        self._pool, self._keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        nothing = self.zeros((1,), "uint8")
        how = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._keeper, **how):
            nothing.zero_()

    def free_memory(self) -> int | None:
        """What the driver says: what torch keeps for later is not free, for the same steps will need it again."""
        if not self.asynchronous:
            return None
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0])

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A stream of our own: graphs cannot be recorded on the one that torch begins with."""
        try:
            with ExitStack() as stack:
                if self._stream is not None:
                    stack.enter_context(torch.cuda.device(self.device))
                    stack.enter_context(torch.cuda.stream(self._stream))
                yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{self.name} has no room left: {error}") from error


class _Done:
    """An event where nothing is asynchronous."""

    def record(self, stream: None) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is under way."""
