"""What graph and engine ask of a device. An array of a device is a numpy array on the host, else a torch tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmcore.dims import Shape, concrete

Array = np.ndarray[Any, Any]


DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and WSL's


def may_have_gpu() -> bool:
    """Whether a GPU's driver is there: a reason to import torch and ask it."""
    return any(Path(node).exists() for node in DRIVERS)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type called ``name``, bfloat16 included."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


@dataclass(frozen=True)
class Mirror:
    """Arrays that the host writes and kernels read.

    Attributes:
        host: what the host writes, by name.
        there: the same arrays as kernels see them; on the host they are one.
        send: brings what the host has written there; the host may write again once ``settle`` has returned.
        settle: waits until what was sent last has left the host's arrays.
    """

    host: Mapping[str, Array]
    there: Mapping[str, Any]
    send: Callable[[], None]
    settle: Callable[[], None]


Reader = Callable[[int], Callable[[], Array]]
"""``f(count)`` sets out for the first ``count`` rows of an array, as they are when all that was asked of the device
before is done; the function that it returns waits for them. Two may be on their way at a time."""


class Device(Protocol):
    """A device.

    Attributes:
        kind: what :class:`llmcore.hookspecs.KernelInfo` lists under ``devices``: ``cpu`` or ``cuda`` (ROCm's too).
        name: which of its kind: ``cuda:0``.
        captures: whether runs of calls can be recorded and replayed (CUDA graphs).
        narrow: the type of 16 bits that it computes best with.
    """

    kind: str
    name: str
    captures: bool
    narrow: str

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new array of zeros, aligned to 64 bytes or more. Raises :class:`MemoryError` where it does not fit."""

    def view(self, block: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        """An array in the uint8 array ``block``, from byte ``offset`` on."""

    def put(self, array: Array) -> Any:
        """``array`` on the device: itself on the host, else a copy."""

    def fetch(self, array: Any) -> Array:
        """An array of the device on the host, when all that was asked of the device before is done.

        On the host it is the array itself, else a copy; bfloat16 and float16 become float32 there.
        """

    def reader(self, array: Any) -> Reader:
        """Brings rows of ``array`` to the host while the device goes on."""

    def mirror(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Mirror:
        """Arrays of zeros of the given shapes and types that the host writes for the device."""

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        """Records what ``calls`` does on the device, without doing it; what is returned does it again and again."""

    def free_memory(self) -> int | None:
        """Bytes that nobody has asked the device for; None where memory is given as it is touched."""

    def scope(self) -> AbstractContextManager[None]:
        """Around all that asks the device for work: puts it on one stream of this device, whichever the thread has.

        Raises:
            MemoryError: at its end, where the device had no room.
        """


@dataclass(frozen=True)
class Place:
    """Where activations live, and what they are.

    Attributes:
        dtype: ``float32``, ``float16`` or ``bfloat16``.
    """

    device: Device
    dtype: str = "float32"
    dtypes: Mapping[str, str] = field(init=False)
    """Type of a value of the graph (``act`` …) → type of its elements."""

    def __post_init__(self) -> None:
        """Fills in ``dtypes``."""
        object.__setattr__(self, "dtypes", {"act": self.dtype, "f32": "float32", "i32": "int32"})

    def zeros(self, shape: Shape, sizes: Mapping[str, int], kind: str) -> Any:
        """Memory for a value of the graph at its largest."""
        return self.device.zeros(concrete(shape, sizes), self.dtypes[kind])
