"""The accelerator that tests run on: a GPU where there is one, else one that torch's CPU plays.

Tests of kernels say where memory lies, as a GPU wants it: operands are made ``there``, and looked at ``here``. Both
copy, so that no test relies on memory that the two have in common on a CPU only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from llmcore.device.accelerator import Accelerator

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
NAME = "cuda" if torch.cuda.is_available() and not INTERPRETING else "cpu"


@cache
def accelerator() -> Accelerator:
    """The device; one for all kernels, for each keeps pinned memory, and so long as a collected check knows it."""
    return Accelerator(NAME)


def there(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the device's memory."""
    return tensor.to(NAME, copy=True)


def here(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory."""
    return tensor.to("cpu", copy=True)


@contextmanager
def on_accelerator(dtype: str = "float32") -> Iterator[Accelerator]:
    """Models that are loaded meanwhile run there, with activations of ``dtype``. Each has a pool of graphs."""
    device = Accelerator(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcore.llm.device_of", lambda *_: device)
        patch.setattr("llmcore.llm.dtype_of", lambda *_, **__: dtype)
        yield device


def recorded_launches(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The grids of Triton's kernels that are launched from now on; none of them runs, be it compiled or interpreted."""
    grids: list[tuple[int, ...]] = []

    def interpreted(executor: Any, *_args: Any, **_options: Any) -> None:
        grids.append(executor.grid)

    def compiled(_function: Any, *_args: Any, grid: tuple[int, ...], **_options: Any) -> None:
        grids.append(grid)

    if INTERPRETING:
        patch.setattr("triton.runtime.interpreter.GridExecutor.__call__", interpreted)
    else:
        patch.setattr("triton.runtime.jit.JITFunction.run", compiled)
    return grids
