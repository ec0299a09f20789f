"""Registers the GGUF format."""

from __future__ import annotations

from llmcore.hookspecs import FormatInfo, hookimpl


@hookimpl
def llmcore_formats() -> list[FormatInfo]:
    return [
        FormatInfo(
            name="gguf",
            summary="one .gguf file, v2 or v3 little-endian, of a Llama, Qwen2 or Qwen3 model",
            matches="llmcore_gguf.checkpoint:matches",
            open="llmcore_gguf.checkpoint:open_gguf",
        )
    ]
