"""Server-sent events, as far as OpenAI's streams use them: the data of each event."""

from __future__ import annotations

from llmcore_tools.load.http import HttpError

MAX_EVENT = 1 << 22  # bytes


class EventStream:
    """Takes bytes as they arrive, gives the data of the events that they complete."""

    def __init__(self) -> None:
        self._held = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Raises :class:`HttpError` for an event without end."""
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > MAX_EVENT:
            raise HttpError(f"an event of more than {MAX_EVENT} bytes")
        found: list[bytes] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6 if line[5:6] == b" " else 5 :])
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found
