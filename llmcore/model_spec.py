"""What a model family says about a model: the numbers that its layers are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: base, rotated size and scaling variant. :mod:`llmcore.layers.rope` has each variant's formula.

    Attributes:
        dim: rotated elements per head.
        interleaved: whether pairs are neighbours (Llama weights as GGUF stores them) or half a head apart.
        factor: how much longer than ``original_positions`` the context became (all variants but ``default``).
        low_freq_factor, high_freq_factor: ``llama3``.
        beta_fast, beta_slow, attention_factor, truncate: ``yarn``; the factor multiplies cosine and sine.
        freq_factors: a divisor for every inverse frequency, where a checkpoint stores them ready-made (GGUF
            ``rope_freqs``).
    """

    dim: int
    theta: float = 10000.0
    kind: RopeKind = "default"
    interleaved: bool = False
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer: pre-norm blocks of attention and a gated MLP.

    Attributes:
        family: name of the family plugin that made it.
        tied: the classifier shares the embedding table.
        qk_norm: every query and key head is RMS-normalised before RoPE.
        max_positions: the context that the model was made for, in tokens.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
