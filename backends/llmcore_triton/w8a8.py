"""Linear layers on int8 weights and int8 tokens."""

from __future__ import annotations

import torch

from llmcore_triton.quantized_linear import INT8, scaled_linear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = x @ weight.T + bias``."""
    scaled_linear(INT8, x, weight, bias, None, y)


def linear_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """``y = residual + x @ weight.T + bias``."""
    scaled_linear(INT8, x, weight, bias, residual, y)
