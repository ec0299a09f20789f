"""Registers the tokenizer kinds."""

from __future__ import annotations

from llmcore.hookspecs import TokenizerInfo, hookimpl


@hookimpl
def llmcore_tokenizers() -> list[TokenizerInfo]:
    return [
        TokenizerInfo(
            kind="hf_json",
            summary="tokenizer.json of Hugging Face's tokenizers",
            target="llmcore_tokenizers.hf_json:load",
        ),
        TokenizerInfo(
            kind="sentencepiece",
            summary="tokenizer.model of SentencePiece",
            target="llmcore_tokenizers.sentencepiece:load",
        ),
        TokenizerInfo(
            kind="gguf",
            summary="the BPE ('gpt2') or SentencePiece ('llama') vocabulary of a GGUF file",
            target="llmcore_tokenizers.gguf:load",
        ),
    ]
