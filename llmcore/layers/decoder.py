"""The decoder: embedding, blocks, final norm and classifier, as one callable that writes the graph of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmcore.layers.attention import Attention
from llmcore.layers.base import GraphBuilder
from llmcore.layers.basic import Classifier, Embedding, RMSNorm, SwiGLU
from llmcore.layers.rope import RoPE
from llmcore.model_spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm transformer block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    path: str
    spec: ModelSpec
    attention: Attention

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        spec = self.spec
        y = self.attention(g, RMSNorm(f"{self.path}.input_layernorm", spec.hidden_size, spec.norm_eps)(g, x))
        with g.scope(self.path):
            x = g.op("add", a=x, b=y)
        y = RMSNorm(f"{self.path}.post_attention_layernorm", spec.hidden_size, spec.norm_eps)(g, x)
        y = SwiGLU(f"{self.path}.mlp", spec.hidden_size, spec.intermediate_size, spec.mlp_bias)(g, y)
        with g.scope(self.path):
            return g.op("add", a=x, b=y)


@dataclass(frozen=True, eq=False)
class Decoder:
    """A whole model. ``page_size`` is the KV cache's, ``positions`` the longest context that it will run."""

    spec: ModelSpec
    positions: int
    page_size: int

    def __call__(self, g: GraphBuilder, taps: dict[str, Any] | None = None) -> Any:
        """Adds one step to ``g``; returns the logits of the wanted rows, ``[R, vocab]``.

        Args:
            taps: receives the hidden state after the embedding and after each block, ``[T, hidden]``, by module path.
        """
        spec = self.spec
        embedding = Embedding("model.embed_tokens", spec.vocab_size, spec.hidden_size)
        rope = RoPE.of(spec.rope, spec.head_dim, self.positions)
        x = embedding(g, g.input("token_ids"))
        taps = {} if taps is None else taps
        taps[embedding.path] = x
        for i in range(spec.layers):
            path = f"model.layers.{i}"
            x = Block(path, spec, Attention(f"{path}.self_attn", i, spec, rope, self.page_size))(g, x)
            taps[path] = x
        with g.scope("model"):
            x = g.op("gather", x=x, rows=g.input("rows"))  # before the norm: only wanted rows are finished
        x = RMSNorm("model.norm", spec.hidden_size, spec.norm_eps)(g, x)
        table = embedding.weight if spec.tied else None
        return Classifier("lm_head", spec.vocab_size, spec.hidden_size, table)(g, x)
