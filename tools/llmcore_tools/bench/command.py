"""``llmcore bench``: hands the command line to the suite that it names; a model's speed is the one without a name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from llmcore.errors import ConfigError, near
from llmcore.plugins import resolve
from llmcore_tools.bench.suite import COMMAND

SUITES = {
    "model": "llmcore_tools.bench.suite:main",
    "ops": "llmcore_tools.bench.ops:main",
    "against": "llmcore_tools.bench.against:main",
    "serve": "llmcore_tools.bench.serve:main",
    "soak": "llmcore_tools.bench.soak:main",
    "batch": "llmcore_tools.bench.batch:main",
    "sampling": "llmcore_tools.bench.sampling:main",
    "kv": "llmcore_tools.bench.kv:main",
    "make-model": "llmcore_tools.bench.make_model:main",
}
__all__ = ["COMMAND", "SUITES", "main"]  # tab completion takes the flags of COMMAND


def main(argv: Sequence[str]) -> int:
    """Runs a suite; returns its exit code."""
    name, rest = chosen(argv)
    code: int = resolve(SUITES[name])(rest)
    return code


def chosen(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The suite, and the arguments for it.

    Raises:
        ConfigError: the first word is nearly the name of a suite; a model's is not refused here.
    """
    first = argv[0] if argv else ""
    if first in SUITES:
        return first, argv[1:]
    if first.isalpha() and difflib.get_close_matches(first, SUITES, cutoff=0.6):
        raise ConfigError(f"there is no benchmark {first!r}", remedy=f"{near(first, SUITES)}; a model is model={first}")
    return "model", argv
