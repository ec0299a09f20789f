"""How one request's tokens are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from llmcore.config.schema import Config
from llmcore.engine.constraint import Constraint
from llmcore.errors import RequestError

MAX_STOPS = 16
COLD = 1e-5  # a temperature below it is greedy
MAX_LOGPROBS = 100
MAX_BIAS = 100.0


class Biases(Mapping[int, float]):
    """Token id → bias, in order of the ids; unlike a dictionary it never changes, and can be hashed."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._values = {int(token): float(biases[token]) for token in sorted(biases)}

    def __getitem__(self, token: int) -> float:
        return self._values[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one request.

    Attributes:
        max_tokens: new tokens at most; None for as many as the context holds.
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 is off.
        top_p: keep the smallest set of tokens with this probability; 1 is off.
        min_p: keep tokens at least this many times as probable as the best; 0 is off.
        repetition_penalty: logits of all tokens seen, the prompt's included, are divided (multiplied where negative)
            by it (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        presence_penalty: subtracted once from the logit of every generated token; 0 is off.
        frequency_penalty: subtracted as many times as the token was generated; 0 is off.
        seed: makes the draw repeatable, whatever else is in the batch; None draws a seed.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end it, beside the model's own.
        ignore_eos: the model's own end tokens do not end it.
        logprobs: report this many most probable tokens, and the chosen one, at every position; None for none.
        logit_bias: token id → what is added to its logit, -100 to 100.
        min_tokens: end tokens are not chosen before so many tokens, and no stop text is looked for in what these
            but the last say. An answer that its constraint completes is over in any case.
        constraint: the form that the answer must have; None for any. Until it has it, no end token is chosen. A stop
            text, or the end of ``max_tokens``, may cut it short.

    Raises:
        RequestError: a value out of range, naming the field.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = Biases({})
    min_tokens: int = 0
    constraint: Constraint | None = None

    @classmethod
    def from_config(cls, config: Config) -> SamplingParams:
        """The parameters that the settings of a command describe."""
        values = vars(config.sampling) | {
            "stop": tuple(config.sampling.stop),
            "stop_token_ids": tuple(config.sampling.stop_token_ids),
        }
        return cls(**values, max_tokens=config.max_new_tokens, seed=config.seed)

    def __post_init__(self) -> None:
        """Checks every field."""
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            self._check(name, isinstance(value, Iterable), "a sequence")
            object.__setattr__(self, name, tuple(value))
        self._check("max_tokens", self.max_tokens is None or _whole(self.max_tokens, 1), "at least 1, or None")
        self._check("temperature", _real(self.temperature, 0, 100), "between 0 (greedy) and 100")
        self._check("top_k", _whole(self.top_k, 0), "0 (off) or more")
        self._check("top_p", _real(self.top_p, 0, 1) and self.top_p > 0, "above 0 and at most 1")
        self._check("min_p", _real(self.min_p, 0, 1), "between 0 and 1")
        self._check("repetition_penalty", _real(self.repetition_penalty, 0.01, 100), "between 0.01 and 100")
        self._check("presence_penalty", _real(self.presence_penalty, -100, 100), "between -100 and 100")
        self._check("frequency_penalty", _real(self.frequency_penalty, -100, 100), "between -100 and 100")
        self._check("seed", self.seed is None or _whole(self.seed, 0, 2**63 - 1), "a non-negative 63-bit integer")
        texts = all(isinstance(text, str) and text for text in self.stop) and len(self.stop) <= MAX_STOPS
        self._check("stop", texts, f"at most {MAX_STOPS} texts, none of them empty")
        self._check("stop_token_ids", all(_whole(token, 0) for token in self.stop_token_ids), "token ids")
        self._check("ignore_eos", isinstance(self.ignore_eos, bool), "true or false")
        self._check(
            "logprobs", self.logprobs is None or _whole(self.logprobs, 0, MAX_LOGPROBS), f"0 to {MAX_LOGPROBS}, or None"
        )
        self._check_rules()

    def _check_rules(self) -> None:
        self._check("logit_bias", _is_bias(self.logit_bias), f"token ids with numbers from -{MAX_BIAS} to {MAX_BIAS}")
        object.__setattr__(self, "logit_bias", Biases(self.logit_bias))
        most = math.inf if self.max_tokens is None else self.max_tokens
        self._check("min_tokens", _whole(self.min_tokens, 0, most), "0 (off) or more, and at most max_tokens")
        given = self.constraint is None or isinstance(self.constraint, Constraint)
        self._check("constraint", given, "a Constraint(kind, text), or None")

    def _check(self, name: str, good: bool, want: str) -> None:
        if not good:
            raise RequestError(f"{name} is {getattr(self, name)!r}", field=name, remedy=f"it must be {want}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken; so cold that logits would overflow counts as zero."""
        return self.temperature < COLD

    @property
    def penalised(self) -> bool:
        """Whether logits depend on the tokens so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def ruled(self) -> bool:
        """Whether tokens are favoured or forbidden."""
        return bool(self.logit_bias) or self.min_tokens > 0 or self.constraint is not None

    @cached_property
    def plain(self) -> bool:
        """Whether the most probable token is all that is wanted."""
        return self.greedy and self.free

    @cached_property
    def free(self) -> bool:
        """Whether a token depends on the model's logits and a draw alone, and nothing but the token is wanted."""
        return not self.penalised and not self.ruled and self.logprobs is None


def _whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def _real(value: Any, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _whole(token, 0) and _real(bias, -MAX_BIAS, MAX_BIAS) for token, bias in value.items()
    )
