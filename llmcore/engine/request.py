"""One request on its way through the engine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmcore.engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities at one position: the chosen token's, and the most probable ones', best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one step added to one request.

    Attributes:
        text: new text; may be empty while a character or a possible stop text is incomplete.
        token_ids: new tokens.
        finish_reason: set on the last one: ``stop`` (end token or stop text), ``length``, ``abort``.
    """

    request_id: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Request:
    """A sequence of tokens under way.

    Attributes:
        tokens: the prompt and what was generated.
        computed: how many of them have their keys and values in the cache.
        pages: the cache pages that hold these, in order.
        seed: of the draw; one is made where the parameters have none.
    """

    id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        """Starts with the prompt."""
        self.tokens = list(self.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet: the prompt's rest, or the newest one."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.prompt_ids) :]
