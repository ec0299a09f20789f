"""Tokenizers for the tests of text: tiny ones made here, and the vocabularies that llama.cpp tests with."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_tokenizer import write_tokenizer
from llmcore.text.tokenizer import Tokenizer, load_tokenizer
from llmcore.weights.cachedir import cache_root, locked
from llmcore.weights.checkpoint import TokenizerSource

SDIST = "llama-cpp-python==0.3.36"  # MIT; its vendored models folder is the best test of tokenizers there is
ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
MEMBERS = "llama_cpp_python-0.3.36/vendor/llama.cpp/models/"
VOCABULARIES = ("llama-spm", "llama-bpe", "qwen2")


@pytest.fixture(scope="session")
def llama_cpp_models() -> Path:
    """llama.cpp's ``models`` folder: vocabularies with test vectors, and chat templates.

    Downloaded once into the user's cache (76 MB, of which 15 are kept); ``LLMCORE_TEST_DATA`` may name a folder that
    holds the archive already.
    """
    folder = cache_root() / "tests" / "llama-cpp-0.3.36"
    with locked(folder):
        if not (folder / "complete").exists():
            given = Path(os.environ.get("LLMCORE_TEST_DATA", "")) / ARCHIVE
            archive = given if given.is_file() else _downloaded(folder)
            _extract(archive, folder)
            (folder / ARCHIVE).unlink(missing_ok=True)
            (folder / "complete").touch()
    return folder


def _downloaded(folder: Path) -> Path:
    """The archive, by pip. It asks the package's build system for metadata, but builds nothing."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--quiet", "--dest", str(folder), SDIST],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"{SDIST} cannot be had: {done.stderr.strip()[-300:]}")
    return folder / ARCHIVE


def _extract(archive: Path, folder: Path) -> None:
    wanted = tuple(f"{MEMBERS}ggml-vocab-{name}.gguf" for name in VOCABULARIES)
    with tarfile.open(archive) as tar:
        for member in tar:
            template = member.name.startswith(f"{MEMBERS}templates/") and member.name.endswith(".jinja")
            content = tar.extractfile(member) if template or member.name.startswith(wanted) else None
            if content is not None:
                (folder / Path(member.name).name).write_bytes(content.read())


@pytest.fixture(scope="session")
def vocabulary(llama_cpp_models: Path) -> Callable[[str], Tokenizer]:
    """``vocabulary(name)``: the tokenizer of one of llama.cpp's vocabularies, loaded once per worker."""
    from llmcore_gguf.container import read_container
    from llmcore_gguf.tokenizer import tokenizer_source

    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            container = read_container(llama_cpp_models / f"ggml-vocab-{name}.gguf")
            loaded[name] = load_tokenizer(tokenizer_source(container))
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE tokenizer of 280 tokens, from a ``tokenizer.json``."""
    folder = tmp_path_factory.mktemp("byte-level")
    write_tokenizer(folder)
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    return load_tokenizer(TokenizerSource("hf_json", folder / "tokenizer.json", special_tokens=special))


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A SentencePiece tokenizer of about 300 tokens, from GGUF data."""
    return load_tokenizer(TokenizerSource("gguf", Path("made-here.gguf"), spm_data()))


def spm_data(**changes: Any) -> dict[str, Any]:
    """GGUF tokenizer data of model ``llama``: three roles, 256 bytes, ``▁`` and letters, and what they merge to."""
    merged = ["▁h", "▁he", "ll", "llo", "▁hello", "or", "ld", "wor", "▁w", "▁world", "▁▁", "im", "end", "é"]
    letters = ["▁", *map(chr, range(0x21, 0x7F))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters, "<think>"]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(tokens) - 259)],
        "token_types": [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters)) + [4],
        "merges": [],
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 0,
        "pad_id": None,
        "eot_id": None,
        "eom_id": None,
        "add_bos": True,
        "add_eos": False,
        "add_space_prefix": True,
        "remove_extra_whitespaces": False,
        **changes,
    }
