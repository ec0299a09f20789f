"""Registers the tools as subcommands of ``llmcore``."""

from __future__ import annotations

from llmcore.hookspecs import CommandInfo, hookimpl

GPU = "llmcore_tools.gpu"


@hookimpl
def llmcore_commands() -> list[CommandInfo]:
    """The tools."""
    return [
        CommandInfo("verify", "compare a model with transformers or another backend", "llmcore_tools.verify:main", 60),
        CommandInfo(
            "bench",
            "measure speed: a model, its ops, a server under load, against llama.cpp",
            "llmcore_tools.bench.command:main",
            70,
        ),
        CommandInfo(
            "gpu-compile",
            "compile all GPU kernels without a GPU, and say what they are like",
            f"{GPU}.compile:main",
            80,
        ),
        CommandInfo("gpu-tune", "find the fastest configurations of GPU kernels on this GPU", f"{GPU}.tune:main", 81),
        CommandInfo(
            "gpu-check", "check the GPU backend on this machine's GPU, and measure it", f"{GPU}.check:main", 82
        ),
    ]
