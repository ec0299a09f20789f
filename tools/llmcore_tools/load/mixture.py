"""What a soak asks: calls of every kind, drawn: conversations and texts, whole and in streams, right and wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from llmcore_tools.load.prompts import Span, text

CHAT, TEXT, EMBED, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"
OTHER_ROUTES = 0.02  # embeddings and counts of tokens
WRONG = 0.03
REPEATED = 0.06
REPEATED_ASKS = 8
STREAMED, CONVERSATIONS = 0.5, 0.6
SEEDED, LOGPROBS, SEVERAL, STOPS, LONG, SHARED, FORMS = 0.3, 0.2, 0.08, 0.08, 0.04, 0.3, 0.01
SHARED_WORDS = 30  # with which some prompts begin
TOKENS_A_WORD = 8  # at most, of a byte-level tokenizer too
SOONEST, LATEST = 1e-3, 4.0  # seconds after which clients hang up who wait for no chunk


@dataclass(frozen=True)
class Call:
    """One call, and what must come of it.

    Attributes:
        path, body: of the request; a body that is bytes is sent as it is.
        answers: choices that must come.
        logprobs: whether every token is told one by one.
        refused: the status and the field that the refusal must have; None where it must be answered.
        hang_up_s: seconds after which the client breaks off.
        hang_up_chunks: or chunks of text after which it does.
        repeated: names what always has the same answer; "" for what is asked once.
    """

    path: str
    body: Mapping[str, Any] | bytes
    answers: int = 1
    logprobs: bool = False
    refused: tuple[int, str] | None = None
    hang_up_s: float | None = None
    hang_up_chunks: int | None = None
    repeated: str = ""

    @property
    def data(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def hangs_up(self) -> bool:
        """Whether its client may break off."""
        return self.hang_up_s is not None or self.hang_up_chunks is not None


@dataclass(frozen=True)
class Mixture:
    """What calls are drawn from.

    Attributes:
        context: tokens that prompt and answer may have.
        words: of short prompts; long ones have as many as the context allows, 400 at most.
        output: tokens of an answer, at most.
        disconnects: share of the calls whose clients break off; their answers have ``lost`` tokens each, no fewer.
    """

    model: str
    context: int
    words: Span
    output: Span
    disconnects: float

    @property
    def lost(self) -> int:
        """Tokens of each answer whose client may hang up: so many the server has counted for nobody."""
        return self.output.high

    def draw(self, count: int, seed: int) -> list[Call]:
        """``count`` calls: the same for the same seed."""
        rng = Random(f"{seed} mixture")
        breaks = set(rng.sample(range(count), round(self.disconnects * count)))
        repeated = [self._repeated(number, seed) for number in range(REPEATED_ASKS)]
        return [self._one(rng, repeated, breaks=index in breaks) for index in range(count)]

    def _one(self, rng: Random, repeated: Sequence[Call], *, breaks: bool) -> Call:
        if breaks:
            return self._broken_off(rng)
        kind = rng.random()
        if kind < OTHER_ROUTES:
            return self._other(rng)
        if kind < OTHER_ROUTES + WRONG:
            return self._wrong(rng)
        if kind < OTHER_ROUTES + WRONG + REPEATED:
            return _streamed(rng.choice(repeated), rng.random() < STREAMED)
        return self._plain(rng)

    def _plain(self, rng: Random) -> Call:
        call = self._call(rng, rng.randint(self.output.low, self.output.high))
        more: dict[str, Any] = {}
        if rng.random() < STOPS:
            more["stop"] = rng.choice([".", ["\n\n", "the"], ["zzzz"]])
        if rng.random() < FORMS:
            more["response_format"] = {"type": "json_object"}
        return _streamed(_with(call, more), rng.random() < STREAMED)

    def _call(self, rng: Random, tokens: int) -> Call:
        """A conversation or a text, perhaps several answers to it."""
        words = min(400, self.context // (2 * TOKENS_A_WORD)) if rng.random() < LONG else self.words.draw(rng)
        said = text(rng, words)
        if rng.random() < SHARED:
            said = f"{text(Random(f'shared {rng.randrange(4)}'), SHARED_WORDS)} {said}"
        more: dict[str, Any] = {"model": self.model, "max_tokens": tokens, "temperature": 0}
        if rng.random() < SEEDED:
            more |= {"temperature": 0.8, "top_p": 0.9, "seed": rng.randrange(1 << 31)}
        answers = rng.randint(2, 3) if rng.random() < SEVERAL else 1
        if answers > 1:
            more["n"] = answers
        logprobs = rng.random() < LOGPROBS
        if rng.random() < CONVERSATIONS:
            more |= {"logprobs": True, "top_logprobs": rng.randint(0, 3)} if logprobs else {}
            return Call(CHAT, {"messages": [{"role": "user", "content": said}], **more}, answers, logprobs)
        more |= {"logprobs": rng.randint(0, 3)} if logprobs else {}
        return Call(TEXT, {"prompt": said, **more}, answers, logprobs)

    def _broken_off(self, rng: Random) -> Call:
        """Before or amid the answer, which has a known length if it is generated to its end all the same."""
        call = _with(self._call(rng, self.lost), {"ignore_eos": True})
        streamed = rng.random() < STREAMED
        call = _streamed(call, streamed)
        if streamed and rng.random() < 0.7:
            return replace(call, hang_up_chunks=rng.randint(1, max(1, self.lost // 2)))
        return replace(call, hang_up_s=SOONEST * (LATEST / SOONEST) ** rng.random())

    def _repeated(self, number: int, seed: int) -> Call:
        rng = Random(f"{seed} repeated {number}")
        call = _with(self._call(rng, self.output.high), {"temperature": 0.7, "seed": number})
        return replace(call, repeated=str(number))

    def _other(self, rng: Random) -> Call:
        said = text(rng, self.words.draw(rng))
        if rng.random() < 0.5:
            return Call(EMBED, {"model": self.model, "input": said}, 0)
        return Call(TOKENIZE, {"prompt": said}, 0)

    def _wrong(self, rng: Random) -> Call:
        """A call that must be refused by the name of its field."""
        talk: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        plain: dict[str, Any] = {"model": self.model, "prompt": "hi", "max_tokens": 4}
        no_such = {"role": "wizard", "content": "hi"}
        both = partial(rng.choice, [(CHAT, talk), (TEXT, plain)])
        wrong: list[tuple[str, dict[str, Any], dict[str, Any], tuple[int, str]]] = [
            (*both(), {"n": 17}, (400, "n")),
            (*both(), {"stop": ["a"] * 17}, (400, "stop")),
            (*both(), {"temperature": 9}, (400, "temperature")),
            (*both(), {"temprature": 1}, (400, "temprature")),
            (*both(), {"model": "no-such-model"}, (404, "model")),
            (CHAT, talk, {"logprobs": True, "top_logprobs": 21}, (400, "top_logprobs")),
            (CHAT, talk, {"messages": [no_such]}, (400, "messages")),
            (TEXT, plain, {"logprobs": 21}, (400, "logprobs")),
            (TEXT, plain, {"prompt": [0] * (self.context + 1)}, (400, "prompt")),
        ]
        path, body, change, refused = rng.choice(wrong)
        if rng.random() < 0.1:
            return Call(path, b'{"model": ', 0, refused=(400, ""))
        return Call(path, {**body, **change}, 0, refused=refused)


def _with(call: Call, more: Mapping[str, Any]) -> Call:
    assert isinstance(call.body, Mapping)
    return replace(call, body={**call.body, **more})


def _streamed(call: Call, streamed: bool) -> Call:
    return _with(call, {"stream": True, "stream_options": {"include_usage": True}}) if streamed else call
