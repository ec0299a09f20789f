"""Fused ops: compositions that a backend may offer as one kernel.

Each is written as its decomposition, which is at once its meaning, its reference in tests and the pattern that the
fusion pass looks for. Where no backend offers one, the graph keeps the parts. Where two want the same part, the one
that is declared first gets it: a residual is best added where the other term is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcore.ops.attention import slots_of
from llmcore.ops.base import Builder, Case, fused
from llmcore.ops.cases import indices, normed
from llmcore.ops.linear import linear_cases
from llmcore.ops.rms_norm import rms_norm_cases

if TYPE_CHECKING:
    import numpy as np


@fused(
    inputs=["x: act[M, K]", "residual: act[M, N]"],
    weights=["weight: any[N, K]", "bias?: f32[N]"],
    outputs=["y: act[M, N]"],
    inplace={"y": ("residual",)},
    cases=lambda: linear_cases("M", "K", "N"),
)
def linear_add(g: Builder, x: Any, residual: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer whose result is added to the residual."""
    return g.op("add", a=residual, b=g.op("linear", x=x, weight=weight, bias=bias))


@fused(
    inputs=["a: act[M, D]", "b: act[M, D]"],
    weights=["weight: f32[C]"],
    outputs=["total: act[M, D]", "y: act[M, D]"],
    inplace={"total": ("a", "b")},
    cases=lambda: (Case(case.dims, case.attrs) for case in rms_norm_cases()),
)
def add_rms_norm(g: Builder, a: Any, b: Any, weight: Any, *, eps: float) -> Any:
    """The residual sum and its norm: one pass over the hidden state in place of two."""
    total = g.op("add", a=a, b=b)
    return total, g.op("rms_norm", x=total, weight=weight, eps=eps)


@fused(
    inputs=["x: act[M, K]"],
    weights=["gate: any[F, K]", "up: any[F, K]"],
    outputs=["y: act[M, F]"],
    cases=lambda: (Case(case.dims) for case in linear_cases("M", "K", "F")),
)
def gate_up_swiglu(g: Builder, x: Any, gate: Any, up: Any) -> Any:
    """The gated activation of an MLP with both of its projections."""
    return g.op("swiglu", gate=g.op("linear", x=x, weight=gate), up=g.op("linear", x=x, weight=up))


def _normed(cases: Iterator[Case]) -> Iterator[Case]:
    for i, case in enumerate(cases):
        yield normed(case, "K", groups=2 if i % 3 == 2 and case.dims["K"] % 2 == 0 else 1, eps=1e-5)


@fused(
    inputs=["x: act[M, K]"],
    weights=["norm: f32[E]", "gate: any[F, K]", "up: any[F, K]"],
    outputs=["y: act[M, F]"],
    cases=lambda: _normed(Case(case.dims) for case in linear_cases("M", "K", "F")),
)
def rms_norm_gate_up_swiglu(g: Builder, x: Any, norm: Any, gate: Any, up: Any, *, norm_eps: float) -> Any:
    """``gate_up_swiglu`` of tokens that are normed first: they need not be written in between."""
    return g.op("gate_up_swiglu", x=g.op("rms_norm", x=x, weight=norm, eps=norm_eps), gate=gate, up=up)


QKV_WEIGHTS = (
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
)

QKV_SHAPES = (  # T, K, heads, kv_heads, head_dim, pairs, page_size, interleaved, present
    (0, 256, 2, 1, 16, 8, 16, False, ()),
    (1, 256, 4, 4, 16, 8, 16, True, ()),
    (1, 192, 6, 2, 64, 32, 16, False, ("bq", "bk", "bv", "nq", "nk")),
    (0, 64, 2, 1, 32, 16, 16, False, ()),
    (1, 64, 2, 1, 32, 8, 4, True, ()),
    (7, 256, 3, 1, 32, 16, 4, True, ("bq", "bk", "bv")),
    (33, 512, 9, 3, 64, 32, 16, False, ("nq", "nk")),
    (5, 64, 8, 1, 24, 6, 1, False, ("bq", "bk", "bv", "nq", "nk")),
)


def _token_indices(dims: Mapping[str, int], rng: np.random.Generator, *, page_size: int) -> dict[str, Any]:
    return indices("positions", "T", below="P")(dims, rng) | slots_of(dims, rng, page_size=page_size)


def _qkv_cases() -> Iterator[Case]:
    for tokens, k, heads, kv_heads, head_dim, pairs, page_size, interleaved, present in QKV_SHAPES:
        dims = {"T": tokens, "K": k, "D": heads * head_dim, "G": kv_heads * head_dim, "C": head_dim}
        yield Case(
            dims | {"P": 40, "F": pairs},
            {"head_dim": head_dim, "page_size": page_size, "interleaved": interleaved, "eps": 1e-6},
            present,
            partial(_token_indices, page_size=page_size),
        )


@fused(
    inputs=["x: act[T, K]", "positions: i32[T]", "slots: i32[T]"],
    weights=QKV_WEIGHTS,
    states=["kv: state"],
    outputs=["q: act[T, D]"],
    cases=_qkv_cases,
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
    inputs=["x: act[T, K]", "positions: i32[T]", "slots: i32[T]"],
    weights=["norm: f32[E]", *QKV_WEIGHTS],
    states=["kv: state"],
    outputs=["q: act[T, D]"],
    cases=lambda: _normed(_qkv_cases()),
)
def rms_norm_qkv_rope_kv_write(
    g: Builder,
    x: Any,
    positions: Any,
    slots: Any,
    norm: Any,
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
    norm_eps: float,
) -> Any:
    """``qkv_rope_kv_write`` of tokens that are normed first: they need not be written in between."""
    x = g.op("rms_norm", x=x, weight=norm, eps=norm_eps)
    biases, norms = {"bq": bq, "bk": bk, "bv": bv}, {"nq": nq, "nk": nk}
    tensors = {"x": x, "positions": positions, "slots": slots, "wq": wq, "wk": wk, "wv": wv, **biases, **norms}
    attrs = {"head_dim": head_dim, "page_size": page_size, "interleaved": interleaved, "eps": eps}
    return g.op("qkv_rope_kv_write", **tensors, cos=cos, sin=sin, kv=kv, **attrs)


def _classifier_cases() -> Iterator[Case]:
    """Those of a linear layer, and a broken row, alone and among others."""

    def broken(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        x = rng.standard_normal((dims["M"], dims["K"])).astype("float32")
        x[dims["M"] // 2, -1] = float("nan")
        return {"x": x}

    yield from (Case(case.dims) for case in linear_cases("M", "K", "N"))
    for tokens in (1, 3):
        yield Case({"M": tokens, "K": 256, "N": 100}, inputs=broken, note="NaN")


@fused(
    inputs=["x: act[M, K]"],
    weights=["weight: any[N, K]"],
    outputs=["ids: i32[M]"],
    cases=_classifier_cases,
)
def classifier_argmax(g: Builder, x: Any, weight: Any) -> Any:
    """The greedy next token without keeping the logits; -1, as ``argmax`` has it, where one of them would be NaN."""
    return g.op("argmax", logits=g.op("linear", x=x, weight=weight))
