"""Compiles a grammar in a process that may die of it; :mod:`llmcore.text.constraint` runs this file.

Takes ``{"path", "grammar", "limits", "seconds", "bytes"}`` as JSON from standard input and prints what llguidance has
against the grammar, or finds in its first steps; or nothing. The library's limits count most of what it does, but not
all: the remainders of a ``multipleOf``, say. Processor time, not the clock, is what ends this process, so that it does
not matter what else the machine does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

STEPS = 32


def main() -> None:
    """Compiles, and goes a few steps through the grammar."""
    job = json.load(sys.stdin)
    bound(job["seconds"], job["bytes"])
    sys.path.append(job["path"])  # an isolated interpreter does not look at PYTHONPATH
    import llguidance

    limits = llguidance.LLParserLimits(**job["limits"])
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), job["grammar"], log_level=0, limits=limits)
    walk(matcher)
    print(json.dumps(matcher.get_error()))


def bound(seconds: int, size: int) -> None:
    """Limits this process's processor time and address space, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue


def walk(matcher: Any) -> None:
    """Chooses tokens without a pattern until the grammar ends."""
    for step in range(STEPS):
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(8 * len(mask)) if mask[token // 8] >> (token % 8) & 1]
        if not allowed or not matcher.consume_token(allowed[step * 7919 % len(allowed)]) or matcher.is_stopped():
            return


if __name__ == "__main__":
    main()
