"""Keys of ``config.json`` as data: what changes no logits, which values switch a feature off, and bounds of sizes."""

from __future__ import annotations

from collections.abc import Mapping

IGNORABLE: tuple[str, ...] = (  # regular expressions: surplus tensors that older converters left in checkpoints
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"model\.rotary_emb\.inv_freq",
)

HARMLESS: frozenset[str] = frozenset(
    {
        # where it came from, and how it is stored
        *("_name_or_path", "_commit_hash", "transformers_version", "transformers.js_config", "torch_dtype", "dtype"),
        *("is_llama_config", "tokenizer_class", "unsloth_version", "unsloth_fixed"),
        # training
        *("initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop"),
        # what the tokenizer and the generation settings look after
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "model_max_length"),
        *("max_length", "max_sequence_length"),
        # how another program runs, splits or reports the same computation
        *("use_cache", "pretraining_tp", "chunk_size_feed_forward", "output_attentions", "output_hidden_states"),
        *("return_dict", "use_return_dict", "torchscript", "attn_implementation", "_attn_implementation"),
        *("_attn_implementation_autoset", "_flash_attn_2_enabled", "keys_to_ignore_at_inference"),
        *("is_decoder",),
        # heads for other tasks
        *("id2label", "label2id", "problem_type", "finetuning_task"),
    }
)

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "auto_map": ({},),
}

REMEDIES: Mapping[str, str] = {  # where the general one does not help
    "quantization_config": "use the checkpoint that it was quantized from, or a GGUF",
    "auto_map": "we never run code that comes with a model; use a checkpoint whose class transformers itself has",
}

LIMIT = 1 << 31  # kernels and page tables hold sizes as int32
LIMITS: Mapping[str, int] = {"num_hidden_layers": 1 << 10, "num_attention_heads": 1 << 16, "head_dim": 1 << 10}
"""Sizes must stay below these: graph and RoPE tables are made before the tensors are claimed, so a damaged config has
to fail here, not after gigabytes of tables or a graph of 2^40 layers."""
