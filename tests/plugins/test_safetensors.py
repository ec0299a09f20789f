"""safetensors by the library's own writer, single and sharded, with what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.container_bytes import CONFIG, EMBED, HEADER, WANTED, safetensors
from helpers.tiny import TinyModel
from llmcore_safetensors.checkpoint import open_safetensors

Tiny = Callable[..., TinyModel]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_bytes(CONFIG)
    return tmp_path


def test_the_librarys_files_read_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((4, 2, 2)).astype(np.float16),
        "bf16": rng.standard_normal((7,)).astype(ml_dtypes.bfloat16),
        "f64": rng.standard_normal((2, 2)),
        "i64": np.arange(4),
        "u8": np.arange(3, dtype=np.uint8),
        "bool": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
        'a "quoted" name\\ é🙂': np.ones(2, np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np", "note": '{"nested": "é}"}'})
    (tmp_path / "config.json").write_bytes(CONFIG)
    checkpoint = open_safetensors(tmp_path)
    assert set(checkpoint.tensors) == set(arrays)
    for name, array in arrays.items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == array.shape and tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array), name
    assert checkpoint.metadata == {"format": "np", "note": '{"nested": "é}"}'}
    assert np.array_equal(checkpoint.tensors["bf16"].dequantize(), arrays["bf16"].astype(np.float32))


def test_a_header_may_be_spaced_and_padded(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors(json.dumps(HEADER, indent=2) + "      "))
    assert np.array_equal(open_safetensors(model).tensors["model.embed_tokens.weight"].numpy(), EMBED)


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_shards_make_one_checkpoint(family: str, tiny_model: Tiny) -> None:
    model = tiny_model(family, shards=3)
    places = {name: part for part in model.path.glob("*.safetensors") for name in load_file(part)}
    checkpoint = open_safetensors(model.path)
    assert set(checkpoint.tensors) == set(places) and len(checkpoint.files) == len(set(places.values())) >= 3
    for name, tensor in checkpoint.tensors.items():
        assert tensor.file == places[name]
        assert np.array_equal(tensor.numpy(), load_file(places[name])[name])
    assert checkpoint.mapped_bytes == sum(path.stat().st_size for path in model.path.glob("*.safetensors"))


def test_links_to_blobs_are_followed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")  # as the hub's cache lays out models
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(model / name)
    assert set(open_safetensors(snapshot).tensors) == set(WANTED)


def test_the_config_passes_through_untouched(model: Path, tiny_model: Tiny) -> None:
    source = tiny_model("llama3")
    checkpoint = open_safetensors(source.path)
    assert checkpoint.config == json.loads((source.path / "config.json").read_text())
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.6}')
    assert open_safetensors(model).generation == {"eos_token_id": [2, 3], "temperature": 0.6}


def test_the_file_itself_may_be_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "other.safetensors")
    for path in (model, model / "other.safetensors"):
        assert set(open_safetensors(path).tensors) == set(WANTED)


def test_tokenizer_json_comes_before_tokenizer_model(model: Path) -> None:
    assert open_safetensors(model).tokenizer.kind == "none"
    (model / "tokenizer.model").write_bytes(b"spm")
    source = open_safetensors(model).tokenizer
    assert (source.kind, source.path) == ("sentencepiece", model / "tokenizer.model")
    (model / "tokenizer.json").write_bytes(b"{}")
    source = open_safetensors(model).tokenizer
    assert (source.kind, source.path) == ("hf_json", model / "tokenizer.json")


def test_special_tokens_come_from_both_files(model: Path) -> None:
    (model / "special_tokens_map.json").write_text('{"unk_token": {"content": "<unk>"}, "eos_token": "<old>"}')
    (model / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": None, "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": True})
    )
    source = open_safetensors(model).tokenizer
    assert source.special_tokens == {"unk_token": "<unk>", "eos_token": "</s>"}
    assert source.config["add_bos_token"] is True


def test_the_chat_template_comes_from_where_it_is(model: Path) -> None:
    def template() -> str | None:
        return open_safetensors(model).tokenizer.chat_template

    assert template() is None
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    assert template() is None
    config.write_text(json.dumps({"chat_template": named}))
    assert template() == "named"
    config.write_text(json.dumps({"chat_template": "plain"}))
    assert template() == "plain"
    (model / "chat_template.json").write_text('{"chat_template": "wrapped"}')
    assert template() == "wrapped"
    (model / "chat_template.jinja").write_text("{{ 'файл' }}")
    assert template() == "{{ 'файл' }}"
