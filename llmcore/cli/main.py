"""``llmcore``: finds the subcommand among those that plugins offer, and runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from llmcore.cli.console import guarded
from llmcore.errors import PluginError
from llmcore.hookspecs import CommandInfo
from llmcore.plugins import plugins, resolve

COMPLETION = ("-sc", "--shell-completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"llmcore {version('llmcore')}")
        return 0
    if arguments[0] in COMPLETION:
        return _complete(arguments)
    name, *rest = arguments
    return _run(plugins().command(name), rest)


def _run(command: CommandInfo, arguments: list[str]) -> int:
    code: int = resolve(command.target)(arguments)
    return code


def _commands() -> list[CommandInfo]:
    return sorted(plugins().commands.values(), key=lambda command: (command.order, command.name))


def _help() -> str:
    width = max(len(command.name) for command in _commands())
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in _commands()]
    return "\n".join(
        [
            "usage: llmcore COMMAND [argument …]",
            "",
            *lines,
            "",
            "llmcore COMMAND --help says more; llama_infer and qwen_infer answer a prompt.",
        ]
    )


def _complete(arguments: list[str]) -> int:
    """Tab completion: the subcommand's name here, what follows it by the subcommand."""
    from llmcore.config.completion import LINE

    line = os.environ.get(LINE, "")
    words = line.split(" ")
    if not arguments[1:] or not arguments[1].startswith("query="):
        from llmcore.cli.settings import run_with_settings
        from llmcore.config.command import Command

        return run_with_settings(Command("llmcore", ""), arguments, lambda _: 0)
    if len(words) < 3:
        print(" ".join(command.name for command in _commands() if command.name.startswith(words[-1])))
        return 0
    command = plugins().commands.get(words[1])
    if command is None or not _takes_settings(command):
        return 0
    os.environ[LINE] = " ".join([words[0], *words[2:]])
    return _run(command, arguments)


def _takes_settings(command: CommandInfo) -> bool:
    """Whether a command has Hydra's flags: its module then says so by a ``COMMAND``."""
    try:
        resolve(f"{command.target.partition(':')[0]}:COMMAND")
    except PluginError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
