"""RMS normalisation of rows or of single heads."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float) -> None:
    """Divides every group of ``C = len(weight)`` elements of ``x`` [M, D] by its RMS; ``y`` may be ``x``."""
    width = weight.shape[0]
    groups = x.float().view(-1, width)  # [M · D / C, C]
    scale = groups.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    if y.dtype == torch.float32:
        torch.mul(groups * scale, weight, out=y.view(-1, width))
    else:
        y.view(-1, width).copy_(groups * scale * weight)
