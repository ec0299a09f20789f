"""A path is handed to the format that recognizes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llmcore_gguf.plugin
import llmcore_safetensors.plugin
from helpers.container_bytes import CONFIG, gguf, safetensors
from llmcore.errors import CheckpointError, ModelReferenceError
from llmcore.plugins import Plugins
from llmcore.weights import open_checkpoint

FORMATS = [*llmcore_gguf.plugin.llmcore_formats(), *llmcore_safetensors.plugin.llmcore_formats()]
PLUGINS = Plugins(formats={info.name: info for info in FORMATS})


def test_nothing_there() -> None:
    with pytest.raises(ModelReferenceError, match="no such file or directory"):
        open_checkpoint("/no/such/model", PLUGINS)


def test_each_format_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "anything.safetensors").write_bytes(safetensors())
    (tmp_path / "a" / "config.json").write_bytes(CONFIG)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "anything.gguf").write_bytes(gguf())
    (tmp_path / "blob").write_bytes(gguf())  # as the hub's cache names files
    for path, name in (
        ("a", "safetensors"),
        ("a/anything.safetensors", "safetensors"),
        ("b", "gguf"),
        ("b/anything.gguf", "gguf"),
        ("blob", "gguf"),
    ):
        with open_checkpoint(tmp_path / path, PLUGINS) as checkpoint:
            assert checkpoint.format == name
            assert len(checkpoint.tensors) == 2


def test_an_unknown_kind_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(CheckpointError, match=r"no checkpoint format recognizes this\n.*gguf: .*safetensors: "):
        open_checkpoint(tmp_path / "model.onnx", PLUGINS)


def test_safetensors_beside_a_pickle_are_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_bytes(CONFIG)
    assert open_checkpoint(tmp_path, PLUGINS).format == "safetensors"


def test_a_closed_checkpoint_lends_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    with open_checkpoint(tmp_path / "m.gguf", PLUGINS) as checkpoint:
        tensor = checkpoint.tensors["model.norm.weight"]
        assert checkpoint.mapped_bytes == (tmp_path / "m.gguf").stat().st_size
    with pytest.raises(CheckpointError, match="closed"):
        tensor.raw()


def test_opening_imports_neither_torch_nor_numba(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_bytes(CONFIG)
    code = (
        "import sys; from pathlib import Path; from llmcore.weights import check_finite\n"
        "from llmcore_gguf.checkpoint import open_gguf; from llmcore_safetensors.checkpoint import open_safetensors\n"
        "for open, name in ((open_gguf, 'm.gguf'), (open_safetensors, '.')):\n"
        "    check_finite(open(Path(sys.argv[1]) / name).tensors.values())\n"
        "print(sorted({'torch', 'numba', 'transformers', 'safetensors', 'gguf'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
