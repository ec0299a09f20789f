"""Arguments of the commands that have no settings: our flags, and names."""

from __future__ import annotations

from collections.abc import Sequence

from llmcore.config.arguments import Flag, extract, usage
from llmcore.errors import ConfigError

HELP = (Flag("--help", "show this"), Flag("-h", ""))


def parse(
    argv: Sequence[str], flags: Sequence[Flag], text: str, names: int = 0
) -> tuple[dict[str, str] | None, list[str]]:
    """The given flags and the names (at most ``names``); None for the flags once ``--help`` has been printed.

    Raises:
        ConfigError: an unknown flag, or too many names.
    """
    given, rest = extract(argv, (*flags, *HELP))
    if "--help" in given or "-h" in given:
        print(f"{text}\n\n{usage(flags)}")
        return None, []
    surplus = [argument for argument in rest if argument.startswith("-")] or rest[names:]
    if surplus:
        raise ConfigError(f"{surplus[0]!r} is not understood", remedy=text)
    return given, rest
