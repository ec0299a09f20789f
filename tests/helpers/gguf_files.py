"""Tiny checkpoints as GGUF files by the ``gguf`` package, with transformers' logits over the *quantized* weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.tiny import TinyModel
from helpers.tiny_tokenizer import MERGES, SPECIAL, TEMPLATE, tokens

K_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""At which byte a block of 256 values keeps its f16 scale, and its f16 minimum (subtracted) where it has one."""


@dataclass(frozen=True)
class TinyGGUF:
    """A tiny GGUF file and the transformers model with the same, dequantized weights."""

    path: Path
    source: TinyModel
    weights: Mapping[str, np.ndarray]  # under Hugging Face names, as dequantized; f32

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """transformers' logits for one prefill of ``ids``: float32, [T, V]."""
        import torch

        model = self.source.reference()
        state = {name: torch.from_numpy(array.copy()) for name, array in self.weights.items()}
        missing, surplus = model.load_state_dict(state, strict=False)
        assert not surplus and set(missing) <= {"lm_head.weight"}, (
            missing,
            surplus,
        )  # a tied head follows the embedding
        with torch.inference_mode():
            found: np.ndarray = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        return found


def write_gguf(model: TinyModel, file: Path, quant: str = "F32", types: Mapping[str, str] | None = None) -> TinyGGUF:
    """Writes ``model`` to ``file`` as llama.cpp's converter would.

    Args:
        model: a tiny llama, qwen2 or qwen3 checkpoint; its config as transformers 5 writes it.
        file: the ``.gguf`` file.
        quant: type of all matrices (``F32`` … ``Q6_K``); vectors are F32. The K types take rows of a multiple of 256
            and hold random blocks of the right scale, not the model's weights: the package cannot quantize to them.
        types: other types for the matrices whose GGUF name contains the key, e.g. ``{"token_embd": "Q8_0"}``.
    """
    import gguf
    from safetensors.numpy import load_file

    arch = model.config["model_type"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], model.config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, arch)
    _write_metadata(writer, model.config)
    _write_tokenizer(writer, arch)
    weights: dict[str, np.ndarray] = {}
    for part in sorted(model.path.glob("*.safetensors")):
        for name, array in load_file(part).items():
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            heads = _permuted_heads(arch, name, model.config)
            stored = permute(array.astype(np.float32), heads) if heads else array.astype(np.float32)
            wanted = next((kind for key, kind in (types or {}).items() if key in target), quant)
            kind = gguf.GGMLQuantizationType[wanted if stored.ndim > 1 else "F32"]
            raw = _quantize(stored, kind, seed=len(weights))
            writer.add_tensor(target, raw, raw_dtype=kind)
            back = gguf.quants.dequantize(raw, kind).reshape(stored.shape)
            weights[name] = unpermute(back, heads) if heads else back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGGUF(file, model, weights)


def requantize(source: Path, target: Path, quant: str) -> Path:
    """Writes the GGUF file ``source`` again with all of its matrices in the format ``quant``."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType[quant] if len(tensor.shape) > 1 else tensor.tensor_type
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K projection reordered so that rotated pairs are neighbours: half-split → interleaved rope."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of :func:`permute`."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _permuted_heads(arch: str, name: str, config: Mapping[str, Any]) -> int:
    if arch != "llama":
        return 0
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    return int(config[key]) if key else 0


def _quantize(array: np.ndarray, kind: Any, seed: int) -> np.ndarray:
    import gguf

    if kind.name not in K_SCALES:
        found: np.ndarray = gguf.quants.quantize(array, kind)
        return found
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert array.shape[-1] % block == 0, f"{kind.name} needs rows of a multiple of {block}, not {array.shape}"
    raw = np.random.default_rng(seed).integers(0, 256, (array.size // block, block_bytes), dtype=np.uint8)
    ratio = 0.0
    if len(K_SCALES[kind.name]) == 2:  # choose the minimum so that the values are centred
        ratio = -_with_scales(raw, kind, 1.0, 0.0).mean() / _with_scales(raw, kind, 0.0, 1.0).mean()
    size = array.std() / _with_scales(raw, kind, 1.0, ratio).std()
    _with_scales(raw, kind, size, size * ratio)
    return raw.reshape(*array.shape[:-1], -1)


def _with_scales(raw: np.ndarray, kind: Any, *scales: float) -> np.ndarray:
    """Sets the scale and minimum of all blocks of ``raw``; returns their values."""
    import gguf

    for place, scale in zip(K_SCALES[kind.name], scales, strict=False):
        raw[:, place : place + 2] = np.array([scale], np.float16).view(np.uint8)
    values: np.ndarray = gguf.quants.dequantize(raw, kind)
    return values


def _write_metadata(writer: Any, config: Mapping[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    writer.add_name("tiny")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    _write_rope_scaling(writer, rope, head_dim)


def _write_rope_scaling(writer: Any, rope: Mapping[str, Any], head_dim: int) -> None:
    import gguf

    match rope["rope_type"]:
        case "default":
            pass
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        case "llama3":  # as one divisor per frequency
            writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, head_dim))
        case other:
            raise ValueError(f"GGUF has no rope scaling {other!r}")


def llama3_divisors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """What Llama 3's rope divides each frequency by: f32 [head_dim / 2]."""
    wavelength = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _write_tokenizer(writer: Any, arch: str) -> None:
    import gguf

    names = tokens()
    kinds = [gguf.TokenType.CONTROL if name in SPECIAL else gguf.TokenType.NORMAL for name in names]
    kinds = [
        gguf.TokenType.UNUSED if name.startswith("<|unused") else kind for name, kind in zip(names, kinds, strict=True)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if arch.startswith("qwen") else "llama-bpe")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(names.index(SPECIAL[0]))
    writer.add_eos_token_id(names.index(SPECIAL[1]))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
