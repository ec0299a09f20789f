"""What the shell is told while a command line is being typed: our flags here, everything else by Hydra."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from llmcore.config.arguments import HYDRA_FLAGS, Flag, extract
from llmcore.errors import ConfigError

LINE = "COMP_LINE"  # what shells put the line into


def flags_for(line: str, flags: Sequence[Flag]) -> list[str] | None:
    """The long flags that the last word may become, or None where it is no flag."""
    last = line.rpartition(" ")[2]
    if not last.startswith("--"):
        return None
    return sorted(name for name in (*(flag.name for flag in flags), *HYDRA_FLAGS) if name.startswith(last))


def hide_flags(flags: Sequence[Flag]) -> None:
    """Takes our flags, and values that only they can have, off the line that Hydra is about to read."""
    line = os.environ.get(LINE, "")
    try:
        program, *words = shlex.split(line)
        _, rest = extract(words, flags)
    except (ValueError, ConfigError):  # an open quote, a flag without its value: nothing to complete after it
        return
    end = " " if line.endswith(" ") else ""
    os.environ[LINE] = " ".join([program, *rest]) + (end if rest else " ")
