"""Models on an accelerator: a GPU where there is one, else one that torch's CPU plays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from llmcore.device import Place
from llmcore.device.accelerator import Accelerator

NAME = "cuda" if torch.cuda.is_available() else "cpu"


def accelerator() -> Accelerator:
    """The device."""
    return Accelerator(NAME)


@contextmanager
def on_accelerator(dtype: str = "float32") -> Iterator[Accelerator]:
    """Models that are loaded meanwhile run there, with activations of ``dtype``."""
    device = accelerator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcore.llm.place_of", lambda *_, **__: Place(device, dtype))
        yield device
