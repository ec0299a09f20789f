"""How the byte-level BPE vocabularies that GGUF names in ``tokenizer.ggml.pre`` split text before merging.

Regexes are written for the ``tokenizers`` library (Oniguruma); each is the model family's own.
"""

from __future__ import annotations

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-4's: contractions in any case, a letter run may take one other character, line ends stay with what precedes them.
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """What happens to a text before BPE merges.

    Attributes:
        splits: each splits the pieces of the one before; matches and what lies between them stay apart.
        nfc: whether the text is brought into Unicode's composed form first.
        ignore_merges: whether a piece that is a token as a whole is taken without merging.
        add_bos: whether a BOS comes first where the file does not say.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = PreTokenizer((GPT2,))
_DIGITS = PreTokenizer((r"\p{N}", GPT2))
_LLAMA3 = PreTokenizer((GPT4 % r"\p{N}{1,3}",), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((GPT4 % r"\p{N}",), nfc=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    # A file without the key: what llama.cpp does for it, punctuation apart and digits in threes.
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
}
