"""Registers the safetensors format."""

from __future__ import annotations

from llmcore.hookspecs import FormatInfo, hookimpl


@hookimpl
def llmcore_formats() -> list[FormatInfo]:
    return [
        FormatInfo(
            name="safetensors",
            summary="a directory with config.json and model.safetensors, or its shards and their index",
            matches="llmcore_safetensors.checkpoint:matches",
            open="llmcore_safetensors.checkpoint:open_safetensors",
        )
    ]
