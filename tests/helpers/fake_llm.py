"""A model for testing commands: it knows what it was asked, and says what it was told to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from llmcore.engine.request import Delta
from llmcore.engine.results import Explanation, KVCacheUse, MemoryUse
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import RequestError
from llmcore.graph.program import Row

MEMORY = MemoryUse(100, 90, 80, 70, 60)


def row(op: str, path: str, backend: str = "numba", reason: str = "choice 1 of 2") -> Row:
    """One line of an explanation."""
    return Row(op, path, backend, f"k.{op}:{op}", "native", reason, 0)


class FakeLLM:
    """Answers every prompt with ``pieces``, one a token.

    Attributes:
        backend: what runs its layers.
        asked: what it was given, in order: ids of prompts, messages of conversations.
    """

    def __init__(self, pieces: Sequence[str] = ("Pa", "ris", "."), template: str | None = "a template") -> None:
        self.pieces = tuple(pieces)
        self.checkpoint = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=template))
        self.memory = MEMORY
        self.load_s = 0.5
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.closed = False
        self.streaming = False
        self.backend = "numba"

    def encode(self, text: str) -> list[int]:
        """One id for each character."""
        self.asked.append(text)
        return [ord(character) for character in text]

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """As many ids as there are messages."""
        self.asked.append([dict(message) for message in messages])
        return list(range(len(messages)))

    def stream(self, ids: Sequence[int], params: SamplingParams, *, continues: bool = True) -> Iterator[Delta]:
        """The pieces, the last with a reason."""
        self.params.append(params)
        return self._deltas()

    def stream_chat(self, messages: Sequence[dict[str, str]], params: SamplingParams) -> Iterator[Delta]:
        """The pieces; a conversation about the number 13 is refused."""
        if any("13" in message["content"] for message in messages):
            raise RequestError("the conversation is too long")
        self.chat_ids(messages)
        return self.stream([], params)

    def _deltas(self) -> Iterator[Delta]:
        self.streaming = True
        try:
            for i, piece in enumerate(self.pieces):
                yield Delta(0, piece, (i,), finish_reason="length" if i + 1 == len(self.pieces) else None)
        finally:
            self.streaming = False

    def explain(self, tokens: int = 1) -> Explanation:
        """Three layers on ``backend`` and a head on torch."""
        layers = [row("linear", f"model.layers.{i}.mlp.up_proj", self.backend) for i in range(3)]
        head = row("linear", "lm_head", "torch", "backend.ops.linear=torch")
        cache = KVCacheUse("float32", "plain v1", 10, 16, 512)
        return Explanation(tokens, (*layers, head), (("native", 3), ("calls", 1)), 1000, 900, 3000, 3.0, cache)

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True
