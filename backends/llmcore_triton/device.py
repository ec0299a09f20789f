"""What the kernels run on, asked once: its name, how many multiprocessors it has, how much memory they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from llmcore.device.base import may_have_gpu

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # multiply and add at once; Triton will leave it off by default
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels, on CPU tensors; Triton reads the variable when it is imported."""


@dataclass(frozen=True)
class Target:
    """A device as kernel configurations are chosen for it.

    Attributes:
        name: ``sm_90``, ``gfx942``, or ``interpreter``.
        multiprocessors: that run programs at the same time (compute units).
        shared: bytes of shared memory that one program may have.
        warp: threads of a warp.
    """

    name: str
    multiprocessors: int
    shared: int
    warp: int = 32

    @property
    def cuda(self) -> bool:
        """Whether it is NVIDIA's."""
        return self.name.startswith("sm_")

    @property
    def capability(self) -> int:
        """NVIDIA's compute capability, 90 for Hopper; 0 elsewhere."""
        return int(self.name[3:]) if self.cuda else 0


INTERPRETER = Target("interpreter", multiprocessors=4, shared=65536)

KNOWN = {
    "sm_80": Target("sm_80", 108, 166912),
    "sm_90": Target("sm_90", 132, 232448),
    "gfx942": Target("gfx942", 304, 65536, warp=64),
}
"""Devices that kernels are compiled for without having one."""


_pretended: list[Target] = []


@contextmanager
def pretend(name: str) -> Iterator[Target]:
    """While open, :func:`target` is the known device ``name``: to compile for it where it is not."""
    _pretended.append(KNOWN[name])
    try:
        yield KNOWN[name]
    finally:
        _pretended.pop()


def target() -> Target:
    """The device that kernels run on now."""
    return _pretended[-1] if _pretended else _present()


@cache
def _present() -> Target:
    """The device of this process."""
    if INTERPRETING:
        return INTERPRETER
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        name = properties.gcnArchName.partition(":")[0]
        return Target(name, properties.multi_processor_count, 65536, warp=64)
    shared = getattr(properties, "shared_memory_per_block_optin", 101376)
    return Target(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count, shared)


def ready() -> str | None:
    """Why no kernel of this backend can run here, or None. Imports torch only where there may be a GPU."""
    if INTERPRETING or _pretended:
        return None
    if not may_have_gpu():
        return "no GPU here (TRITON_INTERPRET=1 runs its kernels on the CPU, slowly)"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU: its build or the driver does not fit"
    return None
