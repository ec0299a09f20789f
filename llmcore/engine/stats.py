"""What an engine has done, and what it holds now, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmcore.engine.request import FinishReason


@dataclass
class Counters:
    """What the engine has done so far.

    Attributes:
        computed: tokens that went through the model, some perhaps again.
        generated: tokens of answers, ended or not.
        ended: requests, by what ended them.
        ended_tokens: tokens of their answers: with those of requests under way they add up to ``generated``.
    """

    computed: int = 0
    generated: int = 0
    steps: int = 0
    ended: dict[FinishReason, int] = field(default_factory=dict)
    ended_tokens: dict[FinishReason, int] = field(default_factory=dict)

    def end(self, reason: FinishReason, tokens: int) -> None:
        """A request has ended with an answer of so many tokens."""
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self.ended_tokens[reason] = self.ended_tokens.get(reason, 0) + tokens


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
        ended, ended_tokens: requests and their answers' tokens, by what ended them; see :class:`Counters`.
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
    ended: Mapping[FinishReason, int]
    ended_tokens: Mapping[FinishReason, int]

    @property
    def failed(self) -> int:
        """Requests that ended with ``error``."""
        return self.ended.get("error", 0)
