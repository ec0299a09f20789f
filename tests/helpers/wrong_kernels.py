"""Kernels as Python callables, right ones and deliberately wrong ones, that the conformance kit is tried on."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nothing_at_all(_node: Any) -> str:
    return "busy"


def _rms(x: Array, weight: Array, eps: float) -> Array:
    groups = x.reshape(-1, len(weight))
    scale = 1 / np.sqrt(np.mean(groups**2, -1, keepdims=True) + eps)
    return (groups * scale * weight).reshape(x.shape)


def rms_norm(x: Array, weight: Array, y: Array, *, eps: float) -> None:
    y[...] = _rms(x, weight, eps)


def rms_norm_other_eps(x: Array, weight: Array, y: Array, *, eps: float) -> None:
    y[...] = _rms(x, weight, 1e-5)  # as if every model had it


def rms_norm_eps_outside(x: Array, weight: Array, y: Array, *, eps: float) -> None:
    groups = x.reshape(-1, len(weight))
    y[...] = (groups / (np.sqrt(np.mean(groups**2, -1, keepdims=True)) + eps) * weight).reshape(x.shape)


def rms_norm_whole_rows(x: Array, weight: Array, y: Array, *, eps: float) -> None:
    y[...] = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * np.resize(weight, x.shape[1])


def rms_norm_clobbers(x: Array, weight: Array, y: Array, *, eps: float) -> None:
    x[...] = _rms(x, weight, eps)
    y[...] = x


def rms_norm_returns(x: Array, weight: Array, y: Array, *, eps: float) -> Array:
    return _rms(x, weight, eps)  # a result that nobody looks at


def add(a: Array, b: Array, y: Array) -> None:
    np.add(a, b, out=y)


def add_not_in_place(a: Array, b: Array, y: Array) -> None:
    y[...] = a  # b is gone where y is b's memory
    y += b


def add_accumulates(a: Array, b: Array, y: Array) -> None:
    y += a + b  # as if outputs were zero to begin with


def add_past_the_end(a: Array, b: Array, y: Array) -> None:
    np.add(a, b, out=y)
    np.lib.stride_tricks.as_strided(y, (y.shape[0] + 1, y.shape[1]))[-1, 0] = 0


def add_before_the_start(a: Array, b: Array, y: Array) -> None:
    np.add(a, b, out=y)
    if y.size:
        np.lib.stride_tricks.as_strided(y.reshape(-1)[::-1], (y.size + 1,), (-4,))[-1] = 0


def add_forgets_last_row(a: Array, b: Array, y: Array) -> None:
    np.add(a[:-1], b[:-1], out=y[:-1])


def add_raises(a: Array, b: Array, y: Array) -> None:
    raise ValueError("the kernel's own words")


def add_other_signature(a: Array, y: Array) -> None:
    y[...] = a


def linear(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    y[...] = x @ weight.T + (0 if bias is None else bias)


def linear_ignores_bias(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    y[...] = x @ weight.T


def linear_depends_on_batch(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    precise = np.float64 if len(x) == 1 else np.float32
    y[...] = x.astype(precise) @ weight.T.astype(precise) + (0 if bias is None else bias)


def linear_half_precision(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    y[...] = x.astype(np.float16) @ weight.T.astype(np.float16) + (0 if bias is None else bias)


def dense(tensor: Any) -> Array:
    values: Array = tensor.dequantize()
    return values


def dense_other_scale(tensor: Any) -> Array:
    values: Array = tensor.dequantize()
    values[:, -32:] *= 2  # the last block of each row with another block's scale
    return values


def dense_transposed(tensor: Any) -> Array:
    values: Array = tensor.dequantize()
    return values.T


def argmax(logits: Array, ids: Array) -> None:
    ids[...] = np.where(np.isnan(logits).any(-1), -1, logits.argmax(-1))


def argmax_prefers_nan(logits: Array, ids: Array) -> None:
    ids[...] = logits.argmax(-1)


def argmax_last_of_equals(logits: Array, ids: Array) -> None:
    ids[...] = logits.shape[1] - 1 - logits[:, ::-1].argmax(-1)


def softmax_overflows(logits: Array, temperature: Array, probs: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(logits / temperature[:, None])
        probs[...] = weights / weights.sum(-1, keepdims=True)


def top_p_drops_the_last(probs: Array, p: Array, y: Array) -> None:
    """Keeps tokens while the sum stays below p: one too few."""
    for row, share in enumerate(p):
        ranked = np.sort(probs[row].astype(np.float64))[::-1]
        count = max(1, int((np.cumsum(ranked) < share).sum()))
        kept = probs[row] * ((probs[row] >= ranked[count - 1]) | (share >= 1))
        y[row] = kept / kept.sum()


def top_k_unnormalised(probs: Array, k: Array, y: Array) -> None:
    for row, count in enumerate(k):
        threshold = np.sort(probs[row])[-min(int(count), probs.shape[1])] if count > 0 else 0
        y[row] = np.where(probs[row] >= threshold, probs[row], 0)


def top_k_breaks_ties(probs: Array, k: Array, y: Array) -> None:
    for row, count in enumerate(k):
        best = np.argsort(-probs[row], kind="stable")[: int(count) if count > 0 else None]
        kept = np.zeros_like(probs[row])
        kept[best] = probs[row][best]
        y[row] = kept / kept.sum()


def sample_reaches(probs: Array, u: Array, ids: Array) -> None:
    """The first index whose cumulative probability reaches u, in place of exceeding it."""
    total = probs.astype(np.float64).cumsum(-1)
    ids[...] = (total >= u.astype(np.float64)[:, None] * total[:, -1:]).argmax(-1)


def linear_int8(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    """Activations in 8 bits with one scale for a row: right only where a kernel says that it is not exact."""
    scale = np.abs(x).max(-1, keepdims=True, initial=0) / 127
    steps = np.rint(x / np.where(scale == 0, 1, scale))
    y[...] = (steps @ weight.T) * scale + (0 if bias is None else bias)


def classifier(x: Array, weight: Array, ids: Array) -> None:
    argmax(x @ weight.T, ids)


def classifier_hides_nan(x: Array, weight: Array, ids: Array) -> None:
    ids[...] = np.nan_to_num(x @ weight.T).argmax(-1)


def classifier_second_best(x: Array, weight: Array, ids: Array) -> None:
    scores = x @ weight.T
    ids[...] = np.argsort(scores, -1)[:, -min(2, scores.shape[1])]


def classifier_outside(x: Array, weight: Array, ids: Array) -> None:
    ids[...] = len(weight)


def torch_add(a: Any, b: Any, y: Any) -> None:
    y.copy_(a + b)


def torch_add_clobbers(a: Any, b: Any, y: Any) -> None:
    y.copy_(a.add_(b))


def torch_add_past_the_end(a: Any, b: Any, y: Any) -> None:
    y.copy_(a + b)
    y.as_strided((1,), (1,), y.storage_offset() + y.numel()).zero_()


def torch_add_before_the_start(a: Any, b: Any, y: Any) -> None:
    y.copy_(a + b)
    y.as_strided((1,), (1,), y.storage_offset() - 1).zero_()
