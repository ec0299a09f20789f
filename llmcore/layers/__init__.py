"""Layers: what models are made of. A layer knows its checkpoint keys and writes its ops into a builder."""

from llmcore.layers.attention import Attention
from llmcore.layers.base import Const, GraphBuilder, State, Weight
from llmcore.layers.basic import Classifier, Embedding, Linear, RMSNorm, SwiGLU
from llmcore.layers.decoder import Block, Decoder
from llmcore.layers.rope import RoPE

__all__ = [
    "Attention",
    "Block",
    "Classifier",
    "Const",
    "Decoder",
    "Embedding",
    "GraphBuilder",
    "Linear",
    "RMSNorm",
    "RoPE",
    "State",
    "SwiGLU",
    "Weight",
]
