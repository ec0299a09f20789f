"""GGUF names as data: tensors and metadata keys, and what they are called in Hugging Face checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

TENSORS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_TENSORS: Mapping[str, str] = {  # blk.N.<left> → model.layers.N.<right>
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQS = "rope_freqs.weight"

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)")
_OUTER = re.compile(r"(\w+)\.(weight|bias)")


def canonical(name: str) -> str:
    """The Hugging Face name of the GGUF tensor ``name``; names that we do not know stay as they are."""
    if (block := _BLOCK.fullmatch(name)) and block[2] in BLOCK_TENSORS:
        return f"model.layers.{block[1]}.{BLOCK_TENSORS[block[2]]}.{block[3]}"
    if (outer := _OUTER.fullmatch(name)) and outer[1] in TENSORS:
        return f"{TENSORS[outer[1]]}.{outer[2]}"
    return name


# Metadata keys, after the "<architecture>." prefix.
COUNTS: Mapping[str, str] = {  # positive integers
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
NUMBERS: Mapping[str, str] = {  # positive floats
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
ROPE: frozenset[str] = frozenset(  # read together, by config.rope_scaling
    {
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
DERIVED: frozenset[str] = frozenset({"attention.value_length", "rope.dimension_count"})  # must equal head_dim
INFORMATIVE: frozenset[str] = frozenset({"rope.scaling.finetuned"})  # says something that changes no computation
NEUTRAL: Mapping[str, tuple[object, ...]] = {  # features that we lack: only the values that switch them off pass
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
