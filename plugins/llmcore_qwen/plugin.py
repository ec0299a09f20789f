"""Registers the Qwen family."""

from __future__ import annotations

from llmcore.hookspecs import FamilyInfo, hookimpl


@hookimpl
def llmcore_families() -> list[FamilyInfo]:
    """Qwen2, Qwen2.5 and Qwen3, without experts or vision."""
    return [FamilyInfo("qwen", ("qwen2", "qwen3"), "llmcore_qwen.family:qwen", command="qwen_infer")]
