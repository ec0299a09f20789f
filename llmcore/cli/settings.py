"""Commands that run from settings: what this environment offers, handed to :mod:`llmcore.config.compose`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcore.cli.console import report
from llmcore.plugins import plugins, resolve

if TYPE_CHECKING:
    from llmcore.config.command import Command, Task


def run_with_settings(command: Command, argv: Sequence[str], task: Task) -> int:
    """Runs ``task`` for each job that the command line asks for; returns the exit code."""
    from llmcore import ops
    from llmcore.config.command import Installed
    from llmcore.config.launch import run

    installed = Installed(ops.NAMES, list(plugins().backends), is_reference)
    return run(command, argv, task, installed, report)


def is_reference(text: str) -> bool:
    """Whether some source plugin takes ``text`` for a model reference."""
    return any(resolve(source.matches)(text) for source in plugins().sources.values())
