"""Fused ops: compositions that a backend may offer as one kernel.

Each is written as its decomposition, which is at once its meaning, its reference in tests and the pattern that the fusion pass
looks for. Where no backend offers one, the graph keeps the parts.
"""

from __future__ import annotations

from typing import Any

from llmcore.ops.base import Builder, fused


@fused(
    inputs=["a: act[M, D]", "b: act[M, D]"],
    weights=["weight: f32[C]"],
    outputs=["total: act[M, D]", "y: act[M, D]"],
    inplace={"total": ("a", "b")},
)
def add_rms_norm(g: Builder, a: Any, b: Any, weight: Any, *, eps: float) -> Any:
    """The residual sum and its norm: one pass over the hidden state in place of two."""
    total = g.op("add", a=a, b=b)
    return total, g.op("rms_norm", x=total, weight=weight, eps=eps)


@fused(
    inputs=["x: act[M, K]", "residual: act[M, N]"],
    weights=["weight: any[N, K]", "bias?: f32[N]"],
    outputs=["y: act[M, N]"],
    inplace={"y": ("residual",)},
)
def linear_add(g: Builder, x: Any, residual: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer whose result is added to the residual."""
    return g.op("add", a=residual, b=g.op("linear", x=x, weight=weight, bias=bias))


@fused(
    inputs=["x: act[M, K]"],
    weights=["gate: any[F, K]", "up: any[F, K]"],
    outputs=["y: act[M, F]"],
)
def gate_up_swiglu(g: Builder, x: Any, gate: Any, up: Any) -> Any:
    """The gated activation of an MLP with both of its projections."""
    return g.op("swiglu", gate=g.op("linear", x=x, weight=gate), up=g.op("linear", x=x, weight=up))


@fused(
    inputs=["x: act[T, K]", "positions: i32[T]", "slots: i32[T]"],
    weights=[
        "wq: any[D, K]",
        "wk: any[G, K]",
        "wv: any[G, K]",
        "bq?: f32[D]",
        "bk?: f32[G]",
        "bv?: f32[G]",
        "nq?: f32[C]",
        "nk?: f32[C]",
        "cos: f32[P, F]",
        "sin: f32[P, F]",
    ],
    states=["kv: state"],
    outputs=["q: act[T, D]"],
)
def qkv_rope_kv_write(
    g: Builder,
    x: Any,
    positions: Any,
    slots: Any,
    wq: Any,
    wk: Any,
    wv: Any,
    bq: Any = None,
    bk: Any = None,
    bv: Any = None,
    nq: Any = None,
    nk: Any = None,
    cos: Any = None,
    sin: Any = None,
    kv: Any = None,
    *,
    head_dim: int,
    page_size: int,
    interleaved: bool,
    eps: float,
) -> Any:
    """The three projections of attention, head norms where the model has them, RoPE, and the write into the cache."""
    q = g.op("linear", x=x, weight=wq, bias=bq)
    k = g.op("linear", x=x, weight=wk, bias=bk)
    v = g.op("linear", x=x, weight=wv, bias=bv)
    if nq is not None:
        q = g.op("rms_norm", x=q, weight=nq, eps=eps)
        k = g.op("rms_norm", x=k, weight=nk, eps=eps)
    q = g.op("rope", x=q, positions=positions, cos=cos, sin=sin, head_dim=head_dim, interleaved=interleaved)
    k = g.op("rope", x=k, positions=positions, cos=cos, sin=sin, head_dim=head_dim, interleaved=interleaved)
    g.op("kv_write", k=k, v=v, slots=slots, kv=kv, head_dim=head_dim, page_size=page_size)
    return q


@fused(
    inputs=["x: act[M, K]"],
    weights=["weight: any[N, K]"],
    outputs=["ids: i32[M]"],
)
def classifier_argmax(g: Builder, x: Any, weight: Any) -> Any:
    """The greedy next token without keeping the logits."""
    return g.op("argmax", logits=g.op("linear", x=x, weight=weight))
