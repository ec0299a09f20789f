"""Registers ``llmcore serve`` and ``llmcore batch``. Nothing here imports the web framework."""

from __future__ import annotations

from llmcore.hookspecs import CommandInfo, hookimpl


@hookimpl
def llmcore_commands() -> list[CommandInfo]:
    """What this package adds to the command line."""
    return [
        CommandInfo("serve", "answer OpenAI's API over HTTP", "llmcore_server.command:main", 20),
        CommandInfo("batch", "answer a file of requests, resumable", "llmcore_server.batch:main", 21),
    ]
