"""Builds a tokenizer from ``tokenizer.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore.errors import TokenizerError
from llmcore.text.tokenizer import Tokenizer
from llmcore.weights.checkpoint import TokenizerSource
from llmcore_tokenizers import pieces
from llmcore_tokenizers.fast import Decode, FastTokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 1 << 28  # the largest in use are about 35 MB
REMEDY = "download the model's tokenizer again"


def load(source: TokenizerSource) -> Tokenizer:
    """The tokenizer in ``source.path``, with the settings of its ``tokenizer_config.json``.

    Raises:
        TokenizerError: the file is damaged, or decodes in a way that we do not know.
    """
    assert source.path is not None
    path = source.path
    tokenizer = _read(path)
    decode, strips_space = _decoding(path, tokenizer)
    special = {role: tokenizer.token_to_id(text) for role, text in source.special_tokens.items()}
    bos, eos = special.get("bos_token"), special.get("eos_token")
    try:
        prefix, suffix = _around(tokenizer, source.config, bos, eos)
        return FastTokenizer(
            tokenizer,
            decode,
            bos_id=bos,
            eos_ids=() if eos is None else (eos,),
            strips_space=strips_space,
            prefix=prefix,
            suffix=suffix,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", remedy=error.remedy) from error


def _read(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(f"{path}: is larger than {MAX_BYTES} bytes", remedy=REMEDY)
        return tokenizers.Tokenizer.from_file(str(path))
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}", remedy=REMEDY) from error
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"{path}: {str(error)[:300]}", remedy=REMEDY) from error


def _decoding(path: Path, tokenizer: tokenizers.Tokenizer) -> tuple[Decode, bool]:
    """How its decoder turns pieces to bytes, and whether it drops the first space."""
    decoder = tokenizer.decoder
    state: dict[str, Any] = {"type": "none"} if decoder is None else json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return pieces.byte_level, False
    if kinds == ["Metaspace"] and steps[0]["replacement"] == pieces.SPACE:
        return pieces.sentencepiece, steps[0]["prepend_scheme"] != "never"
    if all(_is_sentencepiece(step) for step in steps) and "Replace" in kinds:
        return pieces.sentencepiece, "Strip" in kinds
    raise TokenizerError(
        f"{path}: decodes by {' + '.join(kinds)}",
        remedy="byte-level and SentencePiece decoders are known; a plugin can offer another",
    )


def _is_sentencepiece(step: dict[str, Any]) -> bool:
    """Whether a decoder's step is one of those that undo SentencePiece's writing."""
    match step:
        case {"type": "Replace", "pattern": {"String": pieces.SPACE}, "content": " "}:
            return True
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return True
        case {"type": "ByteFallback" | "Fuse"}:
            return True
    return False


def _around(
    tokenizer: tokenizers.Tokenizer, config: dict[str, Any], bos: int | None, eos: int | None
) -> tuple[list[int], list[int]]:
    """The ids that go before and after a text: as the config says, or else as the file's post-processor does."""
    add_bos, add_eos = config.get("add_bos_token"), config.get("add_eos_token")
    if isinstance(add_bos, bool) or isinstance(add_eos, bool):
        return [bos] if add_bos and bos is not None else [], [eos] if add_eos and eos is not None else []
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise TokenizerError("its post-processor changes a text's tokens", remedy=REMEDY)
