"""What came of one request: when it was sent, when its text arrived, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

OK = "ok"
HUNG_UP = "hung up"


@dataclass(frozen=True)
class Record:
    """One request. Times are seconds on one clock.

    Attributes:
        due: when it was to be sent.
        sent: when it was, before a connection was opened for it.
        end: when its answer was complete, or it failed.
        outcome: ``ok``, ``hung up`` (by us, on purpose), or an error: a status such as ``429``, ``truncated``,
            ``malformed``, ``no connection``, ``timeout``, ``error event``.
        arrivals: of every chunk with text, in order; empty where nothing was streamed.
        output_tokens: None where nobody told.
        counted: by what: ``usage`` (the server), ``chunks`` or nothing.
        detail: an error's first words.
        retry_after: what the server asked for.
    """

    due: float
    sent: float
    end: float
    outcome: str = OK
    arrivals: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    counted: str = ""
    detail: str = ""
    retry_after: str = ""

    @property
    def ttft(self) -> float | None:
        """Time to the first token: until its text was there, in seconds."""
        return self.arrivals[0] - self.sent if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, in seconds; None for a single token, or a single chunk."""
        if len(self.arrivals) < 2 or (self.output_tokens or 0) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / ((self.output_tokens or 0) - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: seconds between one chunk with text and the next."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]

    @property
    def e2e(self) -> float:
        """Seconds from sending it until all of its answer was there."""
        return self.end - self.sent

    def meets(self, ttft: float | None, tpot: float | None) -> bool:
        """Whether it is complete within both limits (s). A limit on what it has none of is met."""
        pairs = ((self.ttft, ttft), (self.tpot, tpot))
        return self.outcome == OK and all(taken is None or limit is None or taken <= limit for taken, limit in pairs)

    def as_json(self, origin: float) -> dict[str, Any]:
        """Times in ms; ``sent_s`` counts from ``origin``."""
        return {
            "sent_s": self.sent - origin,
            "outcome": self.outcome,
            "ttft_ms": milliseconds(self.ttft),
            "tpot_ms": milliseconds(self.tpot),
            "e2e_ms": milliseconds(self.e2e),
            "chunks": len(self.arrivals),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "counted_by": self.counted,
            "detail": self.detail,
            "retry_after": self.retry_after,
        }


def milliseconds(seconds: float | None) -> float | None:
    """As reports show times."""
    return None if seconds is None else 1e3 * seconds
