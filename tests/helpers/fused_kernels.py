"""A fused kernel made of the torch backend's kernels, and one that composes them in a wrong order."""

from __future__ import annotations

from typing import Any

import torch

from llmcore_torch.attention import kv_write
from llmcore_torch.linear import linear
from llmcore_torch.rms_norm import rms_norm
from llmcore_torch.rope import rope


def _projected(x: Any, weight: Any, bias: Any) -> Any:
    y = torch.empty(len(x), len(weight))
    linear(x, weight, bias, y)
    return y


def _qkv(order: str, tensors: Any, *, head_dim: int, page_size: int, interleaved: bool, eps: float) -> None:
    x, positions, slots, wq, wk, wv, bq, bk, bv, nq, nk, cos, sin, kv, q = tensors
    out, k, v = (_projected(x, w, b) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
    for step in order.split():
        for side, norm in ((out, nq), (k, nk)):
            if step == "rope":
                rope(side, positions, cos, sin, side, head_dim=head_dim, interleaved=interleaved)
            elif norm is not None:
                rms_norm(side, norm, side, eps=eps)
    kv_write(k, v, slots, kv, head_dim=head_dim, page_size=page_size)
    q.copy_(out)


def qkv(*tensors: Any, **attrs: Any) -> None:
    _qkv("norm rope", tensors, **attrs)


def qkv_norm_after_rope(*tensors: Any, **attrs: Any) -> None:
    _qkv("rope norm", tensors, **attrs)
