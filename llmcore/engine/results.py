"""What comes out of a model: finished answers with their timings, and how a step is run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from llmcore.engine.request import Delta, FinishReason, Request, TokenLogprobs
from llmcore.graph.program import Row


@dataclass(frozen=True)
class Timings:
    """Seconds and rates of one request. Rates are in tokens per second; None where nothing was measured.

    Tokens that were found in the prefix cache do not count.
    """

    ttft_s: float
    prefill_tok_s: float | None
    decode_tok_s: float | None


@dataclass(frozen=True)
class Completion:
    """One finished answer; ``error`` says what went wrong where that is its reason, and ``cached`` counts the tokens
    of the prompt that were found computed.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    timings: Timings | None = None
    error: str = ""
    cached: int = 0


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a loaded model uses."""

    arena_bytes: int
    arena_lower_bound: int
    kv_bytes: int
    weights_mapped_bytes: int
    weights_repacked_bytes: int


@dataclass(frozen=True)
class KVCacheUse:
    """The pages of the KV cache; ``token_bytes`` are a token's keys and values in all layers, padding included."""

    dtype: str
    layout: str
    pages: int
    page_size: int
    token_bytes: int


@dataclass(frozen=True)
class Explanation:
    """What ``llmcore explain`` shows: every node with its kernel and the reason, and the memory plan.

    Attributes:
        tokens: the step size that the program was made for.
        segments: kind of each segment and how many nodes it runs.
        total_bytes: what the intermediate values would take without sharing.
        kv_cache: the KV cache: its element type, layout, pages, and bytes of a token.
        device, dtype: where it runs, and the type of its activations.
    """

    tokens: int
    rows: tuple[Row, ...]
    segments: tuple[tuple[str, int], ...]
    arena_bytes: int
    lower_bound: int
    total_bytes: int
    reuse_factor: float
    kv_cache: KVCacheUse
    device: str = "cpu"
    dtype: str = "float32"


@dataclass
class Collector:
    """Gathers what comes out of one request."""

    request: Request
    started: float
    first: float = 0.0
    last: float = 0.0
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def drain(self) -> None:
        """Takes the request's new deltas, now."""
        while self.request.deltas:
            self.add(self.request.deltas.popleft())

    def add(self, delta: Delta) -> None:
        """Takes a delta that has come now."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)

    def completion(self) -> Completion:
        """The finished answer."""
        request, count = self.request, len(self.token_ids)
        computed = len(request.prompt_ids) - request.cached
        ttft = self.first - self.started
        decode = (count - 1) / (self.last - self.first) if count > 1 and self.last > self.first else None
        return Completion(
            request.prompt_ids,
            tuple(self.token_ids),
            "".join(self.text),
            request.finish_reason or "abort",
            tuple(self.logprobs),
            Timings(ttft, computed / ttft if ttft > 0 else None, decode),
            request.error,
            request.cached,
        )
