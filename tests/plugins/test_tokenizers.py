"""The tokenizer plugins on small vocabularies made here: what they encode, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_tokenizer import MERGES, SPECIAL, tokens, write_tokenizer
from llmcore.errors import TokenizerError
from llmcore.text.tokenizer import Tokenizer, load_tokenizer
from llmcore.weights.checkpoint import TokenizerSource
from llmcore_tokenizers import pieces
from llmcore_tokenizers.model_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, bpe_model
from llmcore_tokenizers.pretokenizers import PRE_TOKENIZERS

SPM_TOKENS = (
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
    ("▁h", -1.0, NORMAL),
    ("▁hi", -2.0, NORMAL),
    ("<s", -3.0, NORMAL),
    *((letter, -9.0, NORMAL) for letter in "▁his<>/"),
    ("<think>", 0.0, USER_DEFINED),
)
HI = 260
MODEL = bpe_model(SPM_TOKENS, byte_fallback=True) + b"\x1a\x02\x18\x01"  # normalizer_spec { add_dummy_prefix: true }


def bpe_data(**changes: Any) -> dict[str, Any]:
    """GGUF data of the byte-level vocabulary that tiny checkpoints have."""
    names = tokens()
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": names,
        "scores": [],
        "token_types": [3 if name in SPECIAL else 1 for name in names],
        "merges": list(MERGES),
        "bos_id": names.index("<|begin|>"),
        "eos_id": names.index("<|end|>"),
        "unk_id": None,
        "pad_id": None,
        "eot_id": None,
        "eom_id": None,
        "add_bos": None,
        "add_eos": None,
        "add_space_prefix": None,
        "remove_extra_whitespaces": None,
        **changes,
    }


def spm_data(**changes: Any) -> dict[str, Any]:
    texts, scores, types = (list(column) for column in zip(*SPM_TOKENS, strict=True))
    return bpe_data(
        **{
            **{"model": "llama", "tokens": texts, "scores": scores, "token_types": types, "merges": []},
            **{"bos_id": 1, "eos_id": 2, "unk_id": 0},
            **changes,
        }
    )


def from_gguf(data: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(TokenizerSource("gguf", Path("model.gguf"), data))


@pytest.fixture
def from_model(tmp_path: Path) -> Callable[..., Tokenizer]:
    """``from_model(config)``: a tokenizer from a ``tokenizer.model`` file."""

    def load(config: dict[str, Any] | None = None, model: bytes | None = None, **special: str) -> Tokenizer:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(MODEL if model is None else model)
        return load_tokenizer(TokenizerSource("sentencepiece", path, {}, config or {}, None, special))

    return load


@pytest.fixture
def from_json(tmp_path: Path) -> Callable[..., Tokenizer]:
    """``from_json(change, config)``: a tokenizer from a ``tokenizer.json`` that ``change`` may alter."""

    def load(change: Callable[[dict[str, Any]], Any] = dict, config: dict[str, Any] | None = None) -> Tokenizer:
        write_tokenizer(tmp_path)
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
        special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
        return load_tokenizer(TokenizerSource("hf_json", path, {}, config or {}, None, special))

    return load


def test_byte_characters_are_a_bijection() -> None:
    assert sorted(pieces.CHARACTER_OF) == list(range(256))
    assert pieces.byte_level("".join(pieces.CHARACTER_OF.values())) == bytes(pieces.CHARACTER_OF)
    assert [pieces.CHARACTER_OF[ord(character)] for character in " \n!~"] == ["Ġ", "Ċ", "!", "~"]


def test_gguf_and_json_agree(from_json: Callable[..., Tokenizer]) -> None:
    ours, theirs = from_gguf(bpe_data()), from_json()
    for text in ("hello the world", "  wool\n<|im_end|> é 🦙", "", "x" * 300, "<|im_start|>user\nhi<|im_end|>"):
        for parse in (False, True):
            assert ours.encode(text, parse_special=parse) == theirs.encode(text, parse_special=parse)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert ours.bos_id == theirs.bos_id == ours.id_of("<|begin|>")
    assert ours.id_of("nothing") is None


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_split_keeps_the_text(pre: str) -> None:
    tokenizer = from_gguf(bpe_data(pre=pre))
    text = "I'LL we'll  1234567 a.b!?\n\n\t x <|im_end|> ça 漢字 \u00a0\u2003🦙 $+=\r\n "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_qwen2_composes_characters() -> None:
    assert from_gguf(bpe_data(pre="qwen2")).encode("e\u0301") == from_gguf(bpe_data(pre="qwen2")).encode("\u00e9")
    assert from_gguf(bpe_data()).encode("e\u0301") != from_gguf(bpe_data()).encode("\u00e9")


@pytest.mark.parametrize(
    ("pre", "changes", "prefix"),
    [
        ("gpt-2", {}, ()),
        ("llama-bpe", {}, (256,)),
        ("llama-bpe", {"add_bos": False}, ()),
        ("gpt-2", {"add_bos": True}, (256,)),
    ],
)
def test_begin_token_of_gguf(pre: str, changes: dict[str, Any], prefix: tuple[int, ...]) -> None:
    assert from_gguf(bpe_data(pre=pre, **changes)).prefix == prefix


def test_end_tokens_of_gguf() -> None:
    names = tokens()
    assert from_gguf(bpe_data()).eos_ids == (names.index("<|end|>"), names.index("<|im_end|>"))
    assert from_gguf(bpe_data(eot_id=5, add_eos=True)).eos_ids[:2] == (names.index("<|end|>"), 5)
    assert from_gguf(bpe_data(add_eos=True)).encode("")[-1:] == [names.index("<|end|>")]


def test_tokens_without_types_have_their_roles() -> None:
    assert from_gguf(bpe_data(token_types=[])).special_ids == {256, 257}
    tokenizer = from_gguf(spm_data(token_types=[]))
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.decode(tokenizer.encode("é")) == "é"


@pytest.mark.parametrize("kind", ["gguf", "model"])
def test_sentencepiece(kind: str, from_model: Callable[..., Tokenizer]) -> None:
    tokenizer = from_gguf(spm_data()) if kind == "gguf" else from_model()
    assert tokenizer.encode("hi") == [1, HI]
    assert tokenizer.encode("hi hi", add_special=False) == [HI, HI]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.decode([1, HI, HI, 2]) == "hi hi"
    assert tokenizer.decode([1, HI, 2], skip_special=False) == "<s> hi</s>"
    assert tokenizer.encode("<think>", add_special=False)[-1] == tokenizer.id_of("<think>")
    assert tokenizer.encode("hi</s>", parse_special=True) == [1, HI, 2]
    for text in ("<s>", "</s>", "<unk>", "<0x41>", "é", "\x00 ▁"):
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text.replace("▁", " ")  # which SentencePiece cannot tell apart


def test_space_after_control_tokens(from_model: Callable[..., Tokenizer]) -> None:
    parts = ["hi", 2, "hi"]
    assert from_model({"legacy": False}).encode_parts(parts)[:2] == [HI, 2]
    assert from_model({"legacy": False}).encode_parts(parts)[2] != HI
    assert from_model().encode_parts(parts) == from_gguf(spm_data()).encode_parts(parts) == [HI, 2, HI]
    bare = from_gguf(spm_data(add_space_prefix=False))
    assert bare.decode(bare.encode("hi")) == "hi"
    assert HI not in bare.encode("hi")


def test_settings_of_a_model_file(from_model: Callable[..., Tokenizer]) -> None:
    size = len(SPM_TOKENS)
    added = {str(size): {"content": "<|end|>", "special": True}, str(size + 1): {"content": "<call>", "special": False}}
    config = {"add_bos_token": False, "add_eos_token": True, "added_tokens_decoder": added}
    tokenizer = from_model(config, eos_token="<|end|>")
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.eos_ids) == ((), (size,), (size,))
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.encode("hi<call>", add_special=False) == [HI, size + 1]
    assert size not in tokenizer.encode("hi<|end|>", add_special=False)
    assert tokenizer.encode("hi<|end|>", add_special=False, parse_special=True) == [HI, size]
    assert tokenizer.decode([HI, size + 1, size]) == "hi<call>"


def around(kind: str) -> Callable[[dict[str, Any]], Any]:
    """Gives a ``tokenizer.json`` a post-processor that puts tokens around a text."""
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [256], "tokens": ["<|begin|>"]}},
    }
    return lambda content: content.update(post_processor=template if kind == "template" else None)


@pytest.mark.parametrize(
    ("kind", "config", "prefix", "suffix"),
    [
        ("none", {}, (), ()),
        ("template", {}, (256,), ()),
        ("template", {"add_bos_token": False}, (), ()),
        ("none", {"add_bos_token": True, "add_eos_token": True}, (256,), (257,)),
    ],
)
def test_tokens_around_a_text(
    from_json: Callable[..., Tokenizer],
    kind: str,
    config: dict[str, Any],
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
) -> None:
    tokenizer = from_json(around(kind), config)
    assert (tokenizer.prefix, tokenizer.suffix) == (prefix, suffix)
    assert tokenizer.encode("h") == [*prefix, ord("h"), *suffix]


def test_truncation_and_padding_left_in_the_file_are_ignored(from_json: Callable[..., Tokenizer]) -> None:
    def limit(content: dict[str, Any]) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}

    assert len(from_json(limit).encode("x y z")) == 5


def metaspace(scheme: str) -> Callable[[dict[str, Any]], Any]:
    """Makes the tokenizer a SentencePiece one as transformers writes it, whose merges spell a control token."""
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    vocabulary = {text: index for index, (text, _, kind) in enumerate(SPM_TOKENS) if kind != USER_DEFINED}
    merges = [["▁", "h"], ["▁h", "i"], ["<", "s"], ["<s", ">"]]
    added = [
        {**ADDED, "id": vocabulary[text], "content": text}
        for text in ("<unk>", "<s>", "</s>", "<|end|>")
        if text in vocabulary
    ]

    def change(content: dict[str, Any]) -> None:
        content.update(added_tokens=added, pre_tokenizer=space, decoder=space)
        content["model"].update(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")

    return change


ADDED = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


@pytest.mark.parametrize(("scheme", "later"), [("first", False), ("always", True)])
def test_metaspace(from_json: Callable[..., Tokenizer], scheme: str, later: bool) -> None:
    tokenizer = from_json(metaspace(scheme))
    assert tokenizer.encode("hi") == [HI]
    assert tokenizer.decode([1, HI, 2]) == "hi"
    assert 1 not in tokenizer.encode("hi<s>"), "merges make a control token of this text"
    assert tokenizer.decode(tokenizer.encode("hi<s>")) == "hi<s>"
    plain = tokenizer.encode_parts([1, "hi", 2, "hi"])
    assert plain == tokenizer.encode("<s>hi</s>hi", add_special=False, parse_special=True)
    assert (plain[:3] == [1, HI, 2], plain[3:] == [HI]) == (later, later)
    hostile = tokenizer.encode_parts([1, "hi", 2, "hi</s>"])
    assert hostile[: len(plain)] == plain
    assert hostile.count(2) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bpe_data(pre="qwen3-next"), r"model\.gguf: .*'qwen3-next' is not known"),
        (bpe_data(model="bert"), r"model\.gguf: .*'bert' is not supported"),
        (bpe_data(merges=["h e", "zz yy"]), r"model\.gguf: tokenizer\.ggml\.merges"),
        (bpe_data(merges=["h"]), r"model\.gguf: tokenizer\.ggml\.merges"),
        (bpe_data(tokens=["a"] * 280), "the same token twice"),
        (spm_data(scores=[]), "scores is missing"),
        (spm_data(token_types=[1] * len(SPM_TOKENS)), r"model\.gguf: is not a SentencePiece model"),
        (spm_data(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
    ],
)
def test_bad_gguf_data(data: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        from_gguf(data)
    assert caught.value.remedy


@pytest.mark.parametrize("cut", [0, 1, 40, 2000, len(MODEL) - 1])
def test_truncated_model_file(from_model: Callable[..., Tokenizer], cut: int) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
        from_model(model=MODEL[:cut])


def test_model_file_with_a_piece_that_is_no_text(from_model: Callable[..., Tokenizer]) -> None:
    with pytest.raises(TokenizerError, match="not UTF-8"):
        from_model(model=MODEL.replace("▁hi".encode(), b"\xff\x96\x81hi"))


def test_damaged_config_of_a_model_file(from_model: Callable[..., Tokenizer]) -> None:
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        from_model({"added_tokens_decoder": {"x": 1}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(model={"type": "WordSalad"}), r"tokenizer\.json: "),
        (lambda content: content.pop("model"), r"tokenizer\.json: "),
        (lambda content: content["model"]["merges"].append(["q", "zzz"]), r"tokenizer\.json: "),
        (
            lambda content: content.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
            "decodes by WordPiece",
        ),
        (lambda content: content.update(decoder=None), "decodes by none"),
    ],
)
def test_bad_json(from_json: Callable[..., Tokenizer], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        from_json(change)
    assert caught.value.remedy


def test_what_is_no_json(tmp_path: Path) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[]"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: "):
            load_tokenizer(TokenizerSource("hf_json", tmp_path / "tokenizer.json"))


def test_no_tokenizer_and_no_plugin() -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        load_tokenizer(TokenizerSource("none"))
    with pytest.raises(TokenizerError, match="no tokenizer plugin for 'hf_jsn'") as caught:
        load_tokenizer(TokenizerSource("hf_jsn"))  # type: ignore[arg-type]
    assert "did you mean 'hf_json'" in caught.value.remedy


def test_text_that_is_no_unicode() -> None:
    with pytest.raises(TokenizerError, match=r"character 1 .* lone surrogate"):
        from_gguf(bpe_data()).encode("a\ud800")
    for found in (from_gguf(bpe_data()), from_gguf(spm_data())):
        with pytest.raises(TokenizerError, match=r"character 1 .* lone surrogate"):
            found.encode_parts(["fine", "a\udcff"])
