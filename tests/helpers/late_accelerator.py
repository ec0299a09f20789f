"""An accelerator that does nothing until somebody waits for it: then all that it was asked for, in order.

A real one is somewhere between this and one that does everything at once. What the host overwrites too early, or reads
too soon, is wrong here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from llmcore.device import Mirror, Reader
from llmcore.device.accelerator import Accelerator
from llmcore.engine.accelerated import AcceleratedRunner
from llmcore.engine.sampler import Sampler
from llmcore.graph.segments import BoundCall


class LateAccelerator(Accelerator):
    """One that torch's CPU plays."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.asked: deque[Callable[[], Any]] = deque()
        self.count = 0  # of all that it was asked for
        self.most = 0  # that waited at a time

    def later(self, work: Callable[[], Any]) -> None:
        """Puts ``work`` behind all else."""
        self.asked.append(work)
        self.count += 1
        self.most = max(self.most, len(self.asked))

    def finish(self, mark: int | None = None) -> None:
        """Does all that it was asked for, or the first ``mark`` things."""
        while self.asked and (mark is None or self.count - len(self.asked) < mark):
            self.asked.popleft()()

    def put(self, array: np.ndarray) -> Any:
        self.finish()
        return super().put(array)

    def fetch(self, array: Any) -> np.ndarray:
        self.finish()
        return super().fetch(array)

    def reader(self, array: Any) -> Reader:
        landings = cycle([np.empty(array.shape, np.int32) for _ in range(2)])

        def start(count: int) -> Callable[[], np.ndarray]:
            landing = next(landings)
            self.later(lambda: np.copyto(landing[:count], array[:count].numpy()))
            mark = self.count

            def wait() -> np.ndarray:
                self.finish(mark)
                return landing[:count]

            return wait

        return start

    def mirror(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Mirror:
        mirror = super().mirror(shapes)
        mark = 0

        def send() -> None:
            nonlocal mark
            self.later(mirror.send)
            mark = self.count

        return Mirror(mirror.host, mirror.there, send, lambda: self.finish(mark))


def play(patch: pytest.MonkeyPatch) -> LateAccelerator:
    """Models that are loaded from now on run on such a device; no others may run."""
    device = LateAccelerator()

    def call(bound: BoundCall) -> None:
        sizes, args = bound.block.tolist(), list(bound.whole)
        for i, slot in bound.cuts:
            args[i] = bound.whole[i][: sizes[slot]]
        device.later(lambda: bound.function(*args, **bound.attrs))

    def put_off(owner: type, name: str) -> None:
        method = getattr(owner, name)
        patch.setattr(owner, name, lambda *args: device.later(lambda: method(*args)))

    patch.setattr(BoundCall, "__call__", call)
    put_off(AcceleratedRunner, "_follow")
    put_off(Sampler, "_choose")
    patch.setattr("llmcore.llm.device_of", lambda *_: device)
    patch.setattr("llmcore.llm.dtype_of", lambda *_, **__: "float32")
    return device
