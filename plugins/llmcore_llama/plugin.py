"""Registers the Llama family."""

from __future__ import annotations

from llmcore.hookspecs import FamilyInfo, hookimpl


@hookimpl
def llmcore_families() -> list[FamilyInfo]:
    """Llama 2, 3, 3.1, 3.2, 3.3 and what shares their architecture."""
    return [FamilyInfo("llama", ("llama",), "llmcore_llama.family:llama", command="llama_infer")]
