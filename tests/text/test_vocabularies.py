"""llama.cpp's test vectors, which the models' own tokenizers made: 47 texts for each of three vocabularies."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcore.text.detokenizer import Detokenizer
from llmcore.text.tokenizer import Tokenizer

NAMES = ("llama-spm", "llama-bpe", "qwen2")
COUNT = 47


def vectors(models: Path, name: str) -> list[tuple[str, list[int]]]:
    """The texts and ids for one vocabulary."""
    texts = (models / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (models / f"ggml-vocab-{name}.gguf.out").read_text("utf-8").split("\n")[: len(texts)]
    return list(zip(texts, ([int(number) for number in line.split()] for line in lines), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_all_vectors_are_here(llama_cpp_models: Path, name: str) -> None:
    assert len(vectors(llama_cpp_models, name)) == COUNT


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("name", NAMES)
def test_vector(llama_cpp_models: Path, vocabulary: Callable[[str], Tokenizer], name: str, index: int) -> None:
    text, ids = vectors(llama_cpp_models, name)[index]
    tokenizer = vocabulary(name)
    assert tokenizer.encode(text, add_special=False) == ids
    assert tokenizer.encode(text) == [*tokenizer.prefix, *ids, *tokenizer.suffix]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "prefix", "ends", "specials"),
    [
        ("llama-spm", (1,), {"</s>"}, {"<s>", "</s>", "<unk>"}),
        ("llama-bpe", (128000,), {"<|end_of_text|>", "<|eot_id|>"}, {"<|begin_of_text|>", "<|start_header_id|>"}),
        ("qwen2", (), {"<|im_end|>", "<|endoftext|>"}, {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}),
    ],
)
def test_roles(
    vocabulary: Callable[[str], Tokenizer], name: str, prefix: tuple[int, ...], ends: set[str], specials: set[str]
) -> None:
    tokenizer = vocabulary(name)
    assert tokenizer.prefix == prefix
    assert ends == {tokenizer.decode([token], skip_special=False) for token in tokenizer.eos_ids}
    assert specials <= tokenizer.special_texts().keys()
    assert all(tokenizer.id_of(text) == token for text, token in tokenizer.special_texts().items())


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_text_are_text(vocabulary: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer = vocabulary(name)
    for text, token in list(tokenizer.special_texts().items())[:12]:
        sentence = f"x{text}y {text}"
        for each in (text, sentence):
            plain = tokenizer.encode(each, add_special=False)
            assert tokenizer.special_ids.isdisjoint(plain)
            assert tokenizer.decode(plain) == each
        assert tokenizer.encode(sentence, parse_special=True).count(token) == 2 + tokenizer.prefix.count(token)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_text_is_decoded_text(vocabulary: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer, chance = vocabulary(name), random.Random(name)
    for _ in range(10_000):
        ids = [chance.randrange(tokenizer.vocab_size) for _ in range(chance.randrange(9))]
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == tokenizer.decode(ids)
