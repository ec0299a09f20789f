"""llmcore: an LLM inference framework that can be read in an afternoon and extended in one file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcore.engine.constraint import Constraint
    from llmcore.engine.load import EngineSettings
    from llmcore.engine.sampling_params import SamplingParams
    from llmcore.llm import LLM

_HOME = {
    "LLM": "llmcore.llm",
    "SamplingParams": "llmcore.engine.sampling_params",
    "Constraint": "llmcore.engine.constraint",
    "EngineSettings": "llmcore.engine.load",
}

__all__ = ["LLM", "Constraint", "EngineSettings", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: listing plugins costs nothing of the engine."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
