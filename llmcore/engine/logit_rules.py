"""What a request asks of its logits beside penalties: a bias, no end before its time, tokens of a form alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import RequestError
from llmcore.text.constraint import Matcher

Array = np.ndarray[Any, Any]


class LogitRules:
    """One request's rules, with the state of its constraint.

    Attributes:
        matcher: None where the answer may have any form. It follows the tokens that were chosen, so it stays what it
            is when the request has to compute them again.
        stuck: whether the rules have left no token to choose.
    """

    def __init__(self, params: SamplingParams, ends: Iterable[int], vocab: int, matcher: Matcher | None = None) -> None:
        """Args: ``ends`` end the answer; ``vocab`` is the width of the logits.

        Raises:
            RequestError: a bias for a token outside of the vocabulary.
        """
        outside = [token for token in params.logit_bias if token >= vocab]
        if outside:
            raise RequestError(
                f"logit_bias names token {outside[0]}", field="logit_bias", remedy=f"the vocabulary has {vocab} tokens"
            )
        self.tokens = np.array(list(params.logit_bias), np.int64)
        self.bias = np.array(list(params.logit_bias.values()), np.float32)
        self.ends = np.array(sorted(token for token in ends if token < vocab), np.int64)
        self.min_tokens = params.min_tokens
        self.matcher = matcher
        self.stuck = False

    def apply(self, logits: Array, generated: int) -> bool:
        """Changes one row, ``[vocab]``, in place, for the token after ``generated`` ones; whether any token is left."""
        if len(self.tokens):
            logits[self.tokens] += self.bias
        if self.matcher is not None:
            self._constrain(logits, self.matcher)
        if generated < self.min_tokens:
            logits[self.ends] = -np.inf
        choice = bool((logits > -np.inf).any())  # nor is NaN a choice
        self.stuck = not choice and not np.isnan(logits).any()
        return choice

    @property
    def failed(self) -> bool:
        """Whether the request's end is their doing."""
        return self.stuck or (self.matcher is not None and bool(self.matcher.error))

    def _constrain(self, logits: Array, matcher: Matcher) -> None:
        """Leaves what may come next, and end tokens where the answer is a whole one, there alone."""
        ends = logits[self.ends]
        known = len(matcher.allowed)
        bound = matcher.allowed.astype(np.float32)  # arithmetic: a sixth of the time of a choice for each token
        bound -= 0.5
        bound *= np.inf
        np.minimum(logits[:known], bound, out=logits[:known])
        logits[known:] = -np.inf
        logits[self.ends] = ends if matcher.may_end else -np.inf
