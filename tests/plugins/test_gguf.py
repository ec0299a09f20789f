"""GGUF files by the ``gguf`` package's writer, and a real one, open as Hugging Face checkpoints."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from helpers import container_bytes as raw
from helpers.gguf_files import write_gguf
from helpers.tiny import TinyModel
from helpers.tiny_tokenizer import MERGES, TEMPLATE, tokens
from llmcore.errors import CheckpointError
from llmcore.weights import check_finite
from llmcore_gguf.checkpoint import matches, open_gguf
from llmcore_gguf.container import read_container
from llmcore_gguf.names import canonical

Tiny = Callable[..., TinyModel]


def written(path: Path, *values: tuple[str, str, Any]) -> Path:
    """A tensorless GGUF by the package's writer: (method without "add_", key, value)."""
    writer = gguf.GGUFWriter(path, "llama")
    for method, key, value in values:
        getattr(writer, f"add_{method}")(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_every_metadata_type_reads_as_written(tmp_path: Path) -> None:
    values: list[tuple[str, str, Any]] = [
        ("uint8", "a", 255),
        ("int8", "b", -128),
        ("uint16", "c", 65535),
        ("int16", "d", -32768),
        ("uint32", "e", 2**32 - 1),
        ("int32", "f", -(2**31)),
        ("uint64", "g", 2**64 - 1),
        ("int64", "h", -(2**63)),
        ("float32", "i", 0.5),
        ("float64", "j", 0.1),
        ("bool", "k", True),
        ("string", "l", "naïve 🙂"),
        ("array", "m", ["", "a", "é🙂"]),
        ("array", "n", [1, -2, 3]),
        ("array", "o", [0.5, 1.5]),
        ("array", "p", [True, False]),
    ]
    metadata = read_container(written(tmp_path / "m.gguf", *values)).metadata
    for _, key, value in values:
        found = metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value, key
        assert type(found) is type(value) or isinstance(found, np.ndarray), key


def test_nested_arrays_read_to_three_levels(tmp_path: Path) -> None:
    value = raw.nested(2, raw.array(raw.U32, [7, 8]))
    (tmp_path / "m.gguf").write_bytes(raw.gguf({"x": value}))
    metadata = read_container(tmp_path / "m.gguf").metadata
    assert metadata["x"][0][0].tolist() == [7, 8]


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_read(version: int, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(raw.gguf(version=struct.pack("<I", version)))
    checkpoint = open_gguf(tmp_path / "m.gguf")
    assert np.array_equal(checkpoint.tensors["model.embed_tokens.weight"].numpy(), raw.EMBED)
    assert np.array_equal(checkpoint.tensors["model.norm.weight"].numpy(), raw.NORM)


@pytest.mark.parametrize("family", ["llama2", "qwen2", "qwen3"])
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_weights_come_under_hugging_face_names(family: str, quant: str, tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model(family)
    made = write_gguf(model, tmp_path / "m.gguf", quant)
    checkpoint = open_gguf(made.path)
    assert set(checkpoint.tensors) == set(made.weights)
    check_finite(checkpoint.tensors.values())
    rotated = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias") if family == "llama2" else ()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == made.weights[name].shape
        assert tensor.format.name == (quant if len(tensor.shape) == 2 else "F32")
        if not name.endswith(rotated or ("none",)):
            assert np.array_equal(tensor.dequantize(), made.weights[name]), name


def test_alignment_of_the_writers_own_choosing(tiny_model: Tiny, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in ("a", "b"):
        writer.add_tensor(name, np.full((3, 5), ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = read_container(tmp_path / "m.gguf")
    assert [entry.offset % 256 for entry in container.tensors] == [0, 0]
    assert container.mapping.bytes[container.tensors[1].offset :][:60].view("<f4").tolist() == [98.0] * 15


def test_the_tokenizer_is_handed_over_as_data(tiny_model: Tiny, tmp_path: Path) -> None:
    checkpoint = open_gguf(write_gguf(tiny_model("qwen2"), tmp_path / "m.gguf").path)
    source = checkpoint.tokenizer
    assert source.kind == "gguf" and source.path == tmp_path / "m.gguf"
    assert source.data["tokens"] == tokens() and source.data["merges"] == list(MERGES)
    assert (source.data["model"], source.data["pre"]) == ("gpt2", "qwen2")
    assert len(source.data["token_types"]) == len(tokens()) and source.data["scores"] == []
    assert (source.data["add_bos"], source.data["add_eos"]) == (False, None)
    assert (source.data["bos_id"], source.data["eos_id"], source.data["unk_id"]) == (256, 257, None)
    assert source.special_tokens == {"bos_token": tokens()[256], "eos_token": tokens()[257]}
    assert source.chat_template == TEMPLATE
    assert checkpoint.generation == {"bos_token_id": 256, "eos_token_id": [257]}


def test_every_end_of_something_stops_a_generation(tmp_path: Path) -> None:
    change = {
        "tokenizer.ggml.eot_token_id": raw.scalar(raw.U32, 3),
        "tokenizer.ggml.eom_token_id": raw.scalar(raw.U32, 2),
        "tokenizer.ggml.add_bos_token": raw.scalar(raw.BOOL, True),
    }
    (tmp_path / "m.gguf").write_bytes(raw.gguf(change))
    checkpoint = open_gguf(tmp_path / "m.gguf")
    assert checkpoint.generation == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    assert checkpoint.tokenizer.data["scores"] == [0.0, 0.0, 0.0, -1.0]
    assert checkpoint.tokenizer.data["add_bos"] is True
    assert checkpoint.tokenizer.data["pre"] == "default"


def test_a_file_of_a_vocabulary_alone_opens(tmp_path: Path) -> None:
    (tmp_path / "vocab.gguf").write_bytes(raw.gguf(rows=(), data=b""))
    checkpoint = open_gguf(tmp_path / "vocab.gguf")
    assert not checkpoint.tensors and checkpoint.config["vocab_size"] == 4
    assert checkpoint.tokenizer.data["tokens"] == ["<unk>", "<s>", "</s>", "a"]


def test_names_are_translated_only_where_they_are_known() -> None:
    assert canonical("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    assert canonical("output.weight") == "lm_head.weight"
    for name in ("blk.01.attn_q.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.scale", "token_embd", "x.weight"):
        assert canonical(name) == name


def test_a_directory_opens_by_its_only_gguf(tmp_path: Path) -> None:
    assert not matches(tmp_path)
    (tmp_path / "a.gguf").write_bytes(raw.gguf())
    assert matches(tmp_path) and open_gguf(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(raw.gguf())
    with pytest.raises(CheckpointError, match=r"several GGUF files: a\.gguf, b\.gguf"):
        open_gguf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not matches(tmp_path)


def test_the_default_model_opens_as_it_is(smollm2_path: Path) -> None:
    checkpoint = open_gguf(smollm2_path)
    check_finite(checkpoint.tensors.values())
    formats = Counter(tensor.format.name for tensor in checkpoint.tensors.values())
    assert formats == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (49152, 576)
    for name in ("embed_tokens", "layers.0.mlp.up_proj", "layers.29.mlp.down_proj"):
        weights = checkpoint.tensors[f"model.{name}.weight"].dequantize()
        assert 0.05 < weights.std() < 0.5 and abs(weights.mean()) < 0.01, name
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "rope_interleaved": True,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }
    assert config.items() <= checkpoint.config.items()
    assert checkpoint.config["rms_norm_eps"] == pytest.approx(1e-5)
    assert len(checkpoint.tokenizer.data["merges"]) == 48900
    assert checkpoint.tokenizer.special_tokens["eos_token"] == "<|im_end|>"
