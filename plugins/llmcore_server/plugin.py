"""Registers ``llmcore serve``. Nothing here imports the web framework."""

from __future__ import annotations

from llmcore.hookspecs import CommandInfo, hookimpl


@hookimpl
def llmcore_commands() -> list[CommandInfo]:
    """The one command of this package."""
    return [CommandInfo("serve", "answer OpenAI's API over HTTP", "llmcore_server.command:main", 20)]
