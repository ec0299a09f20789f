"""The models whose speed is measured, by the keys of their published ``config.json``, and toys to rehearse with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def _model(
    kind: str, layers: int, hidden: int, ffn: int, heads: tuple[int, int, int], vocab: int, **more: Any
) -> Config:
    """``heads``: of queries, of keys, and their size."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **more,
    }


def _rope(theta: float, kind: str = "default", **more: Any) -> Config:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = _rope(
    500000.0, "llama3", low_freq_factor=1.0, high_freq_factor=4.0, factor=8.0, original_max_position_embeddings=8192
)
LLAMA_1B, LLAMA_8B, QWEN25_7B, QWEN3_8B = "Llama-3.2-1B", "Llama-3.1-8B", "Qwen2.5-7B", "Qwen3-8B"
MODELS: Mapping[str, Config] = {
    LLAMA_1B: _model("llama", 16, 2048, 8192, (32, 8, 64), 128256, tie_word_embeddings=True, **LLAMA3),
    LLAMA_8B: _model("llama", 32, 4096, 14336, (32, 8, 128), 128256, **LLAMA3),
    QWEN25_7B: _model("qwen2", 28, 3584, 18944, (28, 4, 128), 152064, **_rope(1e6)),
    QWEN3_8B: _model("qwen3", 36, 4096, 12288, (32, 8, 128), 151936, **_rope(1e6)),
}
"""Speeds do not depend on the scaling of RoPE, which is a table; the context is as long as any stage needs."""

GOALS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    LLAMA_1B: {"BF16": (0.70, 0.80), "Q8_0": (0.55, 0.70), "Q4_0": (0.40, 0.60)},
    **{name: {"BF16": (0.85, 0.80), "Q8_0": (0.75, 0.70), "Q4_0": (0.60, 0.60)} for name in (*MODELS,)[1:]},
}
"""Model → format of weights → share of the floor to be reached at batch 1 and at batch 64."""

_TOY: Config = {"max_position_embeddings": 128}
TINY: Mapping[str, Config] = {
    "llama, grouped heads, scaled RoPE, tied": _model(
        "llama",
        2,
        64,
        96,
        (4, 2, 16),
        280,
        **_TOY,
        tie_word_embeddings=True,
        **_rope(
            1e4, "llama3", low_freq_factor=1.0, high_freq_factor=4.0, factor=8.0, original_max_position_embeddings=64
        ),
    ),
    "llama, a key head for each query head": _model("llama", 2, 64, 96, (4, 4, 16), 280, **_TOY, **_rope(1e4)),
    "qwen2, biases": _model("qwen2", 2, 64, 96, (4, 2, 16), 280, **_TOY, **_rope(1e6)),
    "qwen3, normed heads": _model("qwen3", 2, 64, 96, (4, 2, 32), 280, **_TOY, **_rope(1e6)),
}
"""One for each way in which the families differ. Each size differs from those that it could be taken for."""

TOY: Config = _model("llama", 1, 32, 64, (2, 1, 16), 96, **_TOY, **_rope(1e4))
"""What a rehearsal takes in place of a published model."""
