"""Builds a tokenizer from a GGUF file's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcore.errors import TokenizerError, near
from llmcore.text.tokenizer import Tokenizer
from llmcore.weights.checkpoint import TokenizerSource
from llmcore_tokenizers import pieces
from llmcore_tokenizers.fast import FastTokenizer
from llmcore_tokenizers.model_proto import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, bpe_model
from llmcore_tokenizers.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from llmcore_tokenizers.sentencepiece import SentencePieceTokenizer

if TYPE_CHECKING:
    import tokenizers

REMEDY = "convert the model to GGUF again"
# Control tokens that end an answer in the models that have them, for files that name only one end.
ENDINGS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>")


def load(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that ``source.data`` holds.

    Raises:
        TokenizerError: its model or pre-tokenizer is not known, or its data is damaged.
    """
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    model = source.data["model"]
    try:
        if model not in builders:
            raise TokenizerError(f"tokenizer.ggml.model {model!r} is not supported", remedy=near(model, builders))
        return builders[model](source.data)
    except TokenizerError as error:
        raise TokenizerError(f"{source.path}: {error.message}", remedy=error.remedy) from error


def _types(data: dict[str, Any]) -> list[int]:
    """The type of each token; guessed from the roles where the file has none."""
    if data["token_types"]:
        return list(data["token_types"])
    types = [BYTE if pieces.BYTE_PIECE.fullmatch(token) else NORMAL for token in data["tokens"]]
    for role, kind in (("bos_id", CONTROL), ("eos_id", CONTROL), ("eot_id", CONTROL), ("unk_id", UNKNOWN)):
        if data.get(role) is not None:
            types[data[role]] = kind
    return types


def _ends(data: dict[str, Any], types: list[int]) -> list[int]:
    """The ids that end an answer."""
    named = [data.get(role) for role in ("eos_id", "eot_id", "eom_id")]
    control = {data["tokens"][token]: token for token, kind in enumerate(types) if kind == CONTROL}
    return list(dict.fromkeys(each for each in [*named, *map(control.get, ENDINGS)] if each is not None))


def _around(data: dict[str, Any], add_bos: bool) -> tuple[list[int], list[int]]:
    """What goes before and after a text; ``add_bos`` counts where the file does not say."""
    wanted = add_bos if data.get("add_bos") is None else data["add_bos"]
    bos, eos = data.get("bos_id"), data.get("eos_id")
    return [bos] if wanted and bos is not None else [], [eos] if data.get("add_eos") and eos is not None else []


def _byte_level(data: dict[str, Any]) -> Tokenizer:
    pre = PRE_TOKENIZERS.get(data["pre"])
    if pre is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre {data['pre']!r} is not known", remedy=near(data["pre"], PRE_TOKENIZERS)
        )
    types = _types(data)
    prefix, suffix = _around(data, pre.add_bos)
    return FastTokenizer(
        _library_tokenizer(data, types, pre),
        pieces.byte_level,
        bos_id=data.get("bos_id"),
        eos_ids=_ends(data, types),
        strips_space=False,
        prefix=prefix,
        suffix=suffix,
    )


def _library_tokenizer(data: dict[str, Any], types: list[int], pre: PreTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokens: list[str] = data["tokens"]
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocabulary) != len(tokens):
        raise TokenizerError("tokenizer.ggml.tokens holds the same token twice", remedy=REMEDY)
    try:
        merges = [tuple(merge.split(" ", 1)) for merge in data["merges"]]
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"tokenizer.ggml.merges: {str(error)[:200]}", remedy=REMEDY) from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    specials = (CONTROL, UNKNOWN)
    tokenizer.add_tokens(
        [
            AddedToken(tokens[token], special=kind in specials, normalized=False)
            for token, kind in enumerate(types)
            if kind in (*specials, USER_DEFINED) and tokens[token]
        ]
    )
    return tokenizer


def _sentencepiece(data: dict[str, Any]) -> Tokenizer:
    tokens: list[str] = data["tokens"]
    types = _types(data)
    if not data["scores"]:
        raise TokenizerError("tokenizer.ggml.scores is missing", remedy=REMEDY)
    if data.get("remove_extra_whitespaces"):
        raise TokenizerError(
            "tokenizer.ggml.remove_extra_whitespaces is not supported", remedy="use the original model"
        )
    unknown = [token for token, kind in enumerate(types) if kind == UNKNOWN]
    for surplus in unknown[1:]:  # SentencePiece knows one
        types[surplus] = CONTROL
    model = bpe_model(
        (_piece(token, *each) for token, each in enumerate(zip(tokens, data["scores"], types, strict=True))),
        byte_fallback=types.count(BYTE) == 256,
    )
    prefix, suffix = _around(data, add_bos=True)
    return SentencePieceTokenizer(
        model,
        bos_id=data.get("bos_id"),
        eos_ids=_ends(data, types),
        space_first=data.get("add_space_prefix") is not False,
        prefix=prefix,
        suffix=suffix,
    )


def _piece(token: int, text: str, score: float, kind: int) -> tuple[str, float, int]:
    """A token as SentencePiece takes it: it knows no empty pieces, and writes spaces as ``▁``."""
    if not text:
        return f"<empty {token}>", score, CONTROL
    return text.replace(" ", pieces.SPACE), score, kind if NORMAL <= kind <= BYTE else UNUSED
