"""The layers that every family is made of. Each knows its checkpoint keys and adds its ops to a builder when called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmcore.layers.base import GraphBuilder, Weight


@dataclass(frozen=True)
class Embedding:
    """``ids [T] -> [T, size]``."""

    path: str
    vocab: int
    size: int

    @property
    def weight(self) -> Weight:
        """The table, ``[vocab, size]``."""
        return Weight(f"{self.path}.weight", (self.vocab, self.size))

    def __call__(self, g: GraphBuilder, ids: Any) -> Any:
        with g.scope(self.path):
            return g.op("embedding", ids=ids, weight=self.weight)


@dataclass(frozen=True)
class RMSNorm:
    """``[M, D] -> [M, D]``, normalised in groups of ``size`` elements."""

    path: str
    size: int
    eps: float

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        with g.scope(self.path):
            return g.op("rms_norm", x=x, weight=Weight(f"{self.path}.weight", (self.size,)), eps=self.eps)


@dataclass(frozen=True)
class Linear:
    """``[M, inputs] -> [M, outputs]``."""

    path: str
    inputs: int
    outputs: int
    bias: bool = False

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        bias = Weight(f"{self.path}.bias", (self.outputs,)) if self.bias else None
        with g.scope(self.path):
            return g.op("linear", x=x, weight=Weight(f"{self.path}.weight", (self.outputs, self.inputs)), bias=bias)


@dataclass(frozen=True)
class SwiGLU:
    """The gated MLP: ``down(silu(gate(x)) * up(x))``."""

    path: str
    size: int
    intermediate: int
    bias: bool = False

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        gate = Linear(f"{self.path}.gate_proj", self.size, self.intermediate, self.bias)(g, x)
        up = Linear(f"{self.path}.up_proj", self.size, self.intermediate, self.bias)(g, x)
        with g.scope(self.path):
            hidden = g.op("swiglu", gate=gate, up=up)
        return Linear(f"{self.path}.down_proj", self.intermediate, self.size, self.bias)(g, hidden)


@dataclass(frozen=True)
class Classifier:
    """Logits, ``[R, size] -> [R, vocab]``; ``table`` is the embedding's weight where the two are tied."""

    path: str
    vocab: int
    size: int
    table: Weight | None = None

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        with g.scope(self.path):
            return g.op("linear", x=x, weight=self.table or Weight(f"{self.path}.weight", (self.vocab, self.size)))
