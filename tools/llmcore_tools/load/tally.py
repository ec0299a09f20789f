"""What came of a call, token by token: texts, counts and reasons of its answers, or the error that it got."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmcore_tools.load.client import Answer, streams
from llmcore_tools.load.http import Response
from llmcore_tools.load.records import OK


@dataclass
class Choice:
    """One answer.

    Attributes:
        text: all of it.
        listed: tokens with log-probabilities.
        chunks: of a stream that have text.
        reason: why it ended; "" as long as it has not.
    """

    text: str = ""
    listed: int = 0
    chunks: int = 0
    reason: str = ""


class Tally(Answer):
    """Takes one answer apart while it comes in.

    Attributes:
        choices: by index.
        error: what the server said in place of an answer.
        ended: whether a stream came to its last event.
    """

    def __init__(self, hang_up_after: int | None = None) -> None:
        """Nothing has come yet; ``hang_up_after``: chunks of text after which we break off."""
        super().__init__(hang_up_after)
        self.choices: dict[int, Choice] = {}
        self.error: dict[str, Any] = {}
        self.ended = False

    def _event(self, now: float, event: bytes) -> None:
        self.ended |= event == b"[DONE]"
        super()._event(now, event)

    def _choice(self, now: float, choice: Any) -> None:
        super()._choice(now, choice)
        if not self.failed[0]:
            self._add(choice, choice.get("delta", choice), 1)

    def _add(self, choice: dict[str, Any], said: dict[str, Any], chunks: int) -> None:
        found = self.choices.setdefault(choice.get("index", 0), Choice())
        words = said.get("content") or said.get("text") or ""
        found.text += words
        found.chunks += chunks if words else 0
        found.listed += _listed(choice.get("logprobs"))
        found.reason = choice.get("finish_reason") or found.reason

    def outcome(self, response: Response) -> tuple[str, str]:
        """As of any answer; what has no choices, as embeddings have none, is an answer too."""
        if streams(response) or self.failed[0] or self.hung_up:
            found = super().outcome(response)
            return found if found[0] != OK or self.ended else ("truncated", "the stream ended without [DONE]")
        try:
            body = json.loads(self.body)
        except ValueError:
            return "malformed", f"no JSON: {bytes(self.body[:80])!r}"
        if not isinstance(body, dict):
            return "malformed", f"no object: {bytes(self.body[:80])!r}"
        if response.status != 200:
            error = body.get("error")
            self.error = error if isinstance(error, dict) else {}
            return str(response.status), str(self.error.get("message", ""))
        self.usage = body.get("usage") or {}
        for choice in body.get("choices") or ():
            self._add(choice, choice.get("message", choice), 0)
        return OK, ""


def _listed(logprobs: Any) -> int:
    """How many tokens log-probabilities are of; a conversation has them under ``content``, a text under ``tokens``."""
    if not isinstance(logprobs, dict):
        return 0
    return len(logprobs.get("content") or logprobs.get("tokens") or ())
