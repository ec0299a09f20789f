"""A client of OpenAI's HTTP API that keeps the time: one request in, one :class:`Record` out, whatever happens."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from llmcore_tools.load.http import Connection, HttpError, Response, Target
from llmcore_tools.load.prompts import Ask
from llmcore_tools.load.records import HUNG_UP, OK, Record
from llmcore_tools.load.sse import EventStream

MAX_BODY = 1 << 24  # bytes of what is no stream
SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class Api:
    """How requests are put.

    Attributes:
        chat: ``/v1/chat/completions``, else ``/v1/completions``.
        timeout: seconds that one request may take.
    """

    model: str
    chat: bool = True
    stream: bool = True
    ignore_eos: bool = False
    key: str = ""
    timeout: float = 600.0

    @property
    def path(self) -> str:
        """Below the server's address."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", "Accept": "*/*", **key}

    def body(self, ask: Ask) -> bytes:
        """A request's JSON."""
        content = ask.content
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        values: dict[str, Any] = {"messages": messages} if self.chat else {"prompt": content}
        values |= {"model": self.model, "max_tokens": ask.max_tokens, "temperature": 0, "stream": self.stream}
        if self.stream:
            values["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            values["ignore_eos"] = True
        return json.dumps(values, ensure_ascii=False).encode()


class Answer:
    """What has come of one answer so far."""

    def __init__(self, hang_up_after: int | None) -> None:
        self.arrivals: list[float] = []
        self.usage: dict[str, Any] = {}
        self.finished = False
        self.hung_up = False
        self.failed = ("", "")  # outcome and detail, where the server says so in its stream
        self._hang_up_after = hang_up_after
        self._events: EventStream | None = None
        self.body = bytearray()  # of what is no stream
        self.last = 0.0  # when anything arrived

    def take(self, now: float, response: Response, data: bytes) -> bool:
        """New bytes; False once there is no use in more. Raises :class:`HttpError`."""
        self.last = now
        if self._events is None and not self.body and data and streams(response):
            self._events = EventStream()
        if self._events is None:
            self.body += data
            if len(self.body) > MAX_BODY:
                raise HttpError(f"an answer of more than {MAX_BODY} bytes")
            return True
        for event in self._events.feed(data):
            self._event(now, event)
        if self._hang_up_after is not None and len(self.arrivals) >= self._hang_up_after and not self.finished:
            self.hung_up = True
        return not self.hung_up and not self.failed[0]

    def _event(self, now: float, event: bytes) -> None:
        if event == b"[DONE]":
            self.finished = True
            return
        try:
            found = json.loads(event)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.failed = ("malformed", f"an event is {event[:80]!r}")
        elif "error" in found:
            self.failed = ("error event", json.dumps(found["error"]))
        else:
            self.usage = _usage(found) or self.usage
            for choice in found.get("choices") or ():
                self._choice(now, choice)

    def _choice(self, now: float, choice: Any) -> None:
        delta = choice.get("delta", choice) if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            self.failed = ("malformed", f"a choice is {str(choice)[:80]!r}")
            return
        if delta.get("content") or delta.get("text") or delta.get("reasoning_content") or delta.get("reasoning"):
            self.arrivals.append(now)
        if choice.get("finish_reason"):
            self.finished = True

    def outcome(self, response: Response) -> tuple[str, str]:
        """How it ended, and the words for an error."""
        if self.failed[0]:
            return self.failed
        if self.hung_up:
            return HUNG_UP, ""
        if response.status != 200:
            return str(response.status), self.body.decode(errors="replace")
        if self._events is not None:
            return (OK, "") if self.finished else ("truncated", "the stream ended without finish_reason and [DONE]")
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found.get("choices"):
            return "malformed", f"no completion: {bytes(self.body[:80])!r}"
        self.usage = _usage(found)
        return OK, ""

    def tokens(self) -> tuple[int | None, int | None, str]:
        """Of prompt and output, and by what the latter are counted."""
        prompt, output = (self.usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
        if isinstance(output, int):
            return prompt if isinstance(prompt, int) else None, output, "usage"
        return None, len(self.arrivals) or None, "chunks" if self.arrivals else ""


def streams(response: Response) -> bool:
    """Whether a response is a stream of events."""
    return response.status == 200 and "text/event-stream" in response.headers.get("content-type", "").lower()


def _usage(found: dict[str, Any]) -> dict[str, Any]:
    usage = found.get("usage")
    return usage if isinstance(usage, dict) else {}


class Client:
    """Requests to one server, over connections that are kept."""

    def __init__(self, target: Target, api: Api) -> None:
        self.target = target
        self.api = api
        self.opened = 0  # connections
        self._idle: list[Connection] = []

    async def ask(self, ask: Ask, due: float | None = None) -> Record:
        """Sends one request and takes its answer; errors are in the record."""
        return await self.send(self.api.path, self.api.body(ask), Answer(ask.hang_up_after), due)

    async def send(
        self, path: str, body: bytes, answer: Answer, due: float | None = None, hang_up_s: float | None = None
    ) -> Record:
        """As :meth:`ask`, for any request; ``hang_up_s``: seconds after which we break off, whatever has come."""
        sent = time.perf_counter()
        request = self.target.request("POST", path, self.api.headers, body)
        retry_after = ""
        try:
            async with asyncio.timeout(self.api.timeout if hang_up_s is None else hang_up_s):
                response = await self._exchange(request, answer)
            outcome, detail = answer.outcome(response)
            retry_after = response.headers.get("retry-after", "")
        except TimeoutError:
            outcome, detail = "timeout", f"no whole answer after {self.api.timeout:g} s"
            if hang_up_s is not None:
                outcome, detail = HUNG_UP, ""
        except HttpError as error:
            outcome, detail = error.outcome, error.message
        except OSError as error:
            outcome, detail = "no connection", str(error)
        end = answer.last if outcome == OK else time.perf_counter()
        prompt, output, counted = answer.tokens()
        return Record(
            sent if due is None else due,
            sent,
            end,
            outcome,
            tuple(answer.arrivals),
            prompt,
            output,
            counted,
            " ".join(detail.split())[:SHOWN],
            retry_after[:SHOWN],
        )

    async def get(self, path: str) -> Any:
        """The JSON below ``path``; None where there is none. Raises :class:`OSError`."""
        answer = Answer(None)
        request = self.target.request("GET", path, self.api.headers)
        try:
            async with asyncio.timeout(self.api.timeout):
                response = await self._exchange(request, answer)
            return json.loads(answer.outcome(response)[1] if response.status != 200 else answer.body)
        except (HttpError, ValueError):
            return None

    async def _exchange(self, request: bytes, answer: Answer) -> Response:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._over(kept, request, answer)
            except HttpError as error:
                if error.outcome != "no answer":
                    raise  # else the server has ended an idle connection just now, as it may: ask on a new one
        self.opened += 1
        return await self._over(await Connection.open(self.target), request, answer)

    async def _over(self, connection: Connection, request: bytes, answer: Answer) -> Response:
        response = await connection.exchange(request, answer.take)
        if connection.free:
            self._idle.append(connection)
        return response

    def _kept(self) -> Connection | None:
        """An idle connection; those that have ended are forgotten."""
        while self._idle:
            connection = self._idle.pop()
            if connection.free:
                return connection
        return None

    def close(self) -> None:
        """Ends all connections."""
        while self._idle:
            self._idle.pop().close()
