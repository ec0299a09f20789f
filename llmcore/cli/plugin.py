"""Registers the built-in subcommands of ``llmcore`` and the built-in policies of its engine."""

from __future__ import annotations

from llmcore.hookspecs import CommandInfo, PolicyInfo, hookimpl


@hookimpl
def llmcore_commands() -> list[CommandInfo]:
    """The subcommands that need nothing but the core."""
    return [
        CommandInfo("chat", "talk with a model", "llmcore.cli.chat:main", 10),
        CommandInfo("explain", "which kernel runs each node of a model, and why", "llmcore.cli.explain:main", 20),
        CommandInfo("ops", "the ops, and which backend offers each", "llmcore.cli.ops:main", 30),
        CommandInfo("plugins", "what is installed, and what it offers", "llmcore.cli.plugins:main", 40),
        CommandInfo("doctor", "what works here, what is missing, and how to get it", "llmcore.cli.doctor:main", 50),
    ]


@hookimpl
def llmcore_policies() -> list[PolicyInfo]:
    """The orders that the core knows."""
    return [
        PolicyInfo("fcfs", "first come, first served", "llmcore.engine.policies:Fcfs"),
        PolicyInfo("priority", "the smallest priority first", "llmcore.engine.policies:Priority"),
        PolicyInfo("shortest", "the shortest answer first, as far as can be told", "llmcore.engine.policies:Shortest"),
    ]
