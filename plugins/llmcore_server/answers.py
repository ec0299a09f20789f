"""Answers in OpenAI's words: objects, chunks of a stream, log-probabilities, usage."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcore.engine.request import Delta, Request, TokenLogprobs
from llmcore.engine.results import Completion
from llmcore.text.detokenizer import Detokenizer
from llmcore.text.tokenizer import Tokenizer
from llmcore_server.tools import ToolCall


def _reason(reason: str | None, *, called: bool) -> str | None:
    return "tool_calls" if called and reason == "stop" else reason


@dataclass
class Usage:
    """Tokens of all answers to one call.

    Attributes:
        choices: answers to each prompt, which stand side by side.
    """

    choices: int = 1
    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def add(self, index: int, request: Request, completion: int) -> None:
        """The answer number ``index``, of so many tokens. A prompt counts once: the others find it in the cache."""
        self.completion += completion
        if index % self.choices == 0:
            self.prompt += len(request.prompt_ids)
            self.cached += request.cached

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": min(self.cached, self.prompt)},
        }


class Places:
    """Where each token's text begins in an answer, echo included, counted in characters.

    A token of some bytes of a character, and one that is no text, is where the text goes on. What a stop text holds
    back, or cuts off, counts: a token's place is known when the token is, and does not depend on those behind it.
    """

    def __init__(self, tokenizer: Tokenizer, echo: int) -> None:
        """Args: ``echo`` is how many characters stand before the answer."""
        self._detokenizer = Detokenizer(tokenizer, continues=True)
        self._place = echo

    def next(self, token: int) -> int:
        """The place of the next token."""
        place = self._place
        self._place += len(self._detokenizer.push(token))
        return place


@dataclass
class Writer:
    """Writes the answers to one call.

    Attributes:
        chat: whether it is a conversation.
        model: the name that the client used.
    """

    chat: bool
    model: str
    tokenizer: Tokenizer
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Draws an id."""
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def whole(
        self,
        answers: Iterable[Completion],
        usage: Usage,
        echoes: Iterable[str],
        calls: Iterable[Sequence[ToolCall]],
    ) -> dict[str, Any]:
        """All answers at once; ``echoes`` are the prompts' texts that stand before them, ``calls`` are of functions."""
        choices = [self._choice(i, *each) for i, each in enumerate(zip(answers, echoes, calls, strict=True))]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._envelope(kind, choices), "usage": usage.body()}

    def _choice(self, index: int, answer: Completion, echo: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": _reason(answer.finish_reason, called=bool(calls))}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
            if calls:
                message |= {"content": answer.text or None, "tool_calls": [call.body() for call in calls]}
            choice["message"] = message
        else:
            choice["text"] = echo + answer.text
        places = Places(self.tokenizer, len(echo))
        choice["logprobs"] = self.logprobs(answer.logprobs, places) if answer.logprobs else None
        return choice

    def first_chunk(self, index: int, echo: str) -> dict[str, Any] | None:
        """What a choice of a stream begins with, if anything."""
        if self.chat:
            delta = {"role": "assistant", "content": ""}
            return self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        return self._chunk({"index": index, "text": echo, "logprobs": None, "finish_reason": None}) if echo else None

    def chunk(self, index: int, delta: Delta, places: Places, *, called: bool = False) -> dict[str, Any]:
        """One piece of a choice; ``places`` has seen the tokens before it; ``called``: functions are to be called."""
        logprobs = self.logprobs(delta.logprobs, places) if delta.logprobs else None
        reason = _reason(delta.finish_reason, called=called)
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        if self.chat:
            choice["delta"] = {"content": delta.text} if delta.text or delta.finish_reason is None else {}
        else:
            choice["text"] = delta.text
        return self._chunk(choice)

    def calls_chunk(self, index: int, text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """The last text of a choice, and its calls of functions."""
        said: dict[str, Any] = {"content": text} if text else {}
        said["tool_calls"] = [call.body(number) for number, call in enumerate(calls)]
        return self._chunk({"index": index, "delta": said, "logprobs": None, "finish_reason": None})

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last piece, where usage was asked for."""
        return {**self._envelope(self._chunks, []), "usage": usage.body()}

    @property
    def _chunks(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._envelope(self._chunks, [choice])

    def logprobs(self, tokens: Iterable[TokenLogprobs], places: Places) -> dict[str, Any]:
        """Log-probabilities of some tokens, the next ones of ``places``."""
        if self.chat:
            return {"content": [self._chat_logprobs(token) for token in tokens], "refusal": None}
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            found["tokens"].append(self._text(token.token_id))
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append({self._text(other): value for other, value in token.top})
            found["text_offset"].append(places.next(token.token_id))
        return found

    def _chat_logprobs(self, token: TokenLogprobs) -> dict[str, Any]:
        top = [self._named(other, value) for other, value in token.top]
        return {**self._named(token.token_id, token.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token)
        return {"token": self._text(token), "logprob": max(logprob, -9999.0), "bytes": list(data)}

    def _text(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")
