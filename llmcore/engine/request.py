"""One request on its way through the engine, and what comes out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, NamedTuple

from llmcore.engine.logit_rules import LogitRules
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError, RequestError, UnanswerableError

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities at one position: the chosen token's, and the most probable ones', best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):
    """What one step added to one request.

    Attributes:
        text: new text; may be empty while a character or a possible stop text is incomplete.
        token_ids: new tokens.
        finish_reason: set on the last one: ``stop`` (end token, stop text, or a form that is complete), ``length``,
            ``abort``, ``error`` (the request says which).
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
        continues: whether the answer goes on in the prompt's text, so that a space at its beginning counts.
        deltas: what came out and was not taken yet.
        rules: what favours or forbids tokens; None where nothing does.
        priority: the smaller, the sooner, where the policy looks at it.
        salt: pages are shared only among requests with the same one.
        overtaken: how many requests that came later were let in before it.
        admitted: whether it was let in at least once; ``cached`` is known then.
        cached: tokens of the prompt whose pages were found in the prefix cache.
        digests: of the sequence's full pages, as far as somebody has asked for them.
        entered: how many of these pages are in the prefix cache, found there or put there.
        unproven: tokens that it had when it was let in: until one follows, nobody has seen whether what it computes
            are numbers.
        error: what went wrong, where the reason is ``error``.
        cause: the exception behind it, if there was one.
    """

    id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    continues: bool = True
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    deltas: deque[Delta] = field(default_factory=deque)
    rules: LogitRules | None = None
    priority: int = 0
    salt: str = ""
    overtaken: int = 0
    admitted: bool = False
    cached: int = 0
    digests: list[bytes] = field(default_factory=list)
    entered: int = 0
    unproven: int = 0
    error: str = ""
    cause: Exception | None = None

    def __post_init__(self) -> None:
        """Starts with the prompt."""
        self.tokens = list(self.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet: the prompt's rest, or the newest one."""
        return len(self.tokens) - self.computed

    @property
    def generated_count(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.tokens) - len(self.prompt_ids)

    @property
    def failure(self) -> GenerationError:
        """What a caller is told of a request that ended with ``error``."""
        kind = UnanswerableError if self.rules is not None and self.rules.failed else GenerationError
        return kind(self.error or "the request has failed")

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt, copied."""
        return self.tokens[len(self.prompt_ids) :]


def checked_ids(token_ids: Sequence[int], vocab: int) -> tuple[int, ...]:
    """``token_ids`` as plain integers, if a model with ``vocab`` tokens can read them.

    Raises:
        RequestError: there are none, one is no integer, or one is outside of the vocabulary.
    """
    if len(token_ids) == 0:
        raise RequestError("the prompt has no tokens", field="prompt", remedy="give at least one character")
    for i, token in enumerate(token_ids):
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise RequestError(f"token {i} of the prompt is {token!r}, no integer", field="prompt")
        if not 0 <= token < vocab:
            raise RequestError(
                f"token {i} of the prompt is {token}, outside of the vocabulary of {vocab}", field="prompt"
            )
    return tuple(int(token) for token in token_ids)


def check_standing(priority: int, salt: str, *, used: bool) -> None:
    """Raises :class:`RequestError` for what no priority or salt can be, or a priority that nobody would look at.

    Args:
        used: whether somebody does.
    """
    if not isinstance(priority, Integral) or isinstance(priority, bool):
        raise RequestError(f"priority is {priority!r}", field="priority", remedy="give an integer")
    if priority and not used:
        raise RequestError(
            f"priority is {priority}, but engine.policy does not look at it",
            field="priority",
            remedy="leave it out, or load the model with engine.policy=priority",
        )
    if not isinstance(salt, str):
        raise RequestError(f"the salt is a {type(salt).__name__}", field="cache_salt", remedy="give a text")
