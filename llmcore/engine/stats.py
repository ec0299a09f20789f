"""What an engine has done, and what it holds now, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What the engine has done so far, in tokens: ``computed`` went through the model, some perhaps again."""

    computed: int = 0
    generated: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Stats:
    """An engine at one moment.

    Attributes:
        running, waiting: requests.
        preemptions: how often a request had to give its pages back.
        pages_total, pages_free: of the KV cache; a free page may still hold a prefix that can be found.
        prefix_queried, prefix_hit: tokens of admitted prompts, and those of them that the prefix cache had.
        generated, computed: tokens; see :class:`Counters`.
        steps: that came to their end.
        failed: requests that ended with ``error``.
    """

    running: int
    waiting: int
    preemptions: int
    pages_total: int
    pages_free: int
    prefix_queried: int
    prefix_hit: int
    generated: int
    computed: int
    steps: int
    failed: int
