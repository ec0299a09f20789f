"""Multi-head and grouped-query attention over the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmcore.layers.base import GraphBuilder, State
from llmcore.layers.basic import Linear, RMSNorm
from llmcore.layers.rope import RoPE
from llmcore.model_spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Attention:
    """``[T, hidden] -> [T, hidden]``: project, normalise heads where the model does, rotate, store, attend, project."""

    path: str
    layer: int
    spec: ModelSpec
    rope: RoPE
    page_size: int

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        spec, size = self.spec, self.spec.head_dim
        cache = State(self.layer, spec.kv_heads, size)
        q = Linear(f"{self.path}.q_proj", spec.hidden_size, spec.heads * size, spec.qkv_bias)(g, x)
        k = Linear(f"{self.path}.k_proj", spec.hidden_size, spec.kv_heads * size, spec.qkv_bias)(g, x)
        v = Linear(f"{self.path}.v_proj", spec.hidden_size, spec.kv_heads * size, spec.qkv_bias)(g, x)
        if spec.qk_norm:
            q = RMSNorm(f"{self.path}.q_norm", size, spec.norm_eps)(g, q)
            k = RMSNorm(f"{self.path}.k_norm", size, spec.norm_eps)(g, k)
        with g.scope(self.path):
            q, k = self.rope(g, q), self.rope(g, k)
            slots = g.input("slots")
            g.op("kv_write", k=k, v=v, slots=slots, kv=cache, head_dim=size, page_size=self.page_size)
            y = g.op(
                "attention",
                q=q,
                query_starts=g.input("query_starts"),
                query_lens=g.input("query_lens"),
                kv_lens=g.input("kv_lens"),
                block_tables=g.input("block_tables"),
                kv=cache,
                head_dim=size,
                kv_heads=spec.kv_heads,
                page_size=self.page_size,
                scale=size**-0.5,
            )
        return Linear(f"{self.path}.o_proj", spec.heads * size, spec.hidden_size, spec.out_bias)(g, y)
