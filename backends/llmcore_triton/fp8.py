"""Linear layers on float8 (e4m3) weights and tokens."""

from __future__ import annotations

import torch

from llmcore_triton import device
from llmcore_triton.quantized_linear import FP8, scaled_linear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = x @ weight.T + bias``."""
    scaled_linear(FP8, x, weight, bias, None, y)


def linear_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """``y = residual + x @ weight.T + bias``."""
    scaled_linear(FP8, x, weight, bias, residual, y)


def ready() -> str | None:
    """Why no kernel of this module can run here, or None: its types came with compute capability 8.9."""
    problem = device.ready()
    if problem:
        return problem
    here = device.target()
    return f"{here.name} has no float8: sm_89 and later do" if here.cuda and here.capability < 89 else None
