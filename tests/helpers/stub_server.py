"""An OpenAI-compatible server that plays a script: delays, errors, streams that break off.

``python -m helpers.stub_server CHUNKS GAP`` serves answers of so many chunks, so many seconds apart: to see what a
client costs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        gaps: seconds before each chunk of text.
        usage: what the server counts: prompt and output tokens; None for no usage.
        raw: bytes in place of the last event, after which the connection is closed.
        body: of an answer that is not streamed; with a length.
        hangs: nothing follows the chunks.
    """

    gaps: Sequence[float] = (0.0,)
    usage: tuple[int, int] | None = None
    status: str = "200 OK"
    headers: Sequence[str] = ()
    raw: bytes | None = None
    body: bytes | None = None
    hangs: bool = False


Script = Callable[[int, dict[str, Any]], Reply]


@dataclass
class Stub:
    """A running server, and what it has seen."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    lost: int = 0  # connections that ended amid an answer
    at_once: int = 0  # most answers under way
    under_way: int = 0

    async def serve(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = int(head.lower().partition("content-length:")[2].split()[0])
                body = await reader.readexactly(length)
                self.heads.append(head)
                if head.startswith("GET /v1/models "):
                    await _send(writer, Reply(body=b'{"data": [{"id": "stub"}]}'), {})
                    continue
                self.bodies.append(json.loads(body))
                self.under_way += 1
                self.at_once = max(self.at_once, self.under_way)
                reply = script(len(self.bodies) - 1, self.bodies[-1])
                try:
                    await self._watched(reader, _send(writer, reply, self.bodies[-1]))
                finally:
                    self.under_way -= 1
                if reply.raw is not None:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _watched(self, reader: asyncio.StreamReader, sending: Any) -> None:
        """Sends, and counts a client that goes away meanwhile."""
        task = asyncio.ensure_future(sending)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.005)
                if not task.done() and (reader.at_eof() or reader.exception()):
                    task.cancel()
                    raise ConnectionError("the client has hung up")
            await task
        except ConnectionError:
            self.lost += 1
            raise


async def _send(writer: asyncio.StreamWriter, reply: Reply, asked: dict[str, Any]) -> None:
    if reply.body is not None:
        head = [f"HTTP/1.1 {reply.status}", *reply.headers, f"Content-Length: {len(reply.body)}", "", ""]
        writer.write("\r\n".join(head).encode() + reply.body)
        await writer.drain()
        return
    head = [f"HTTP/1.1 {reply.status}", "Content-Type: text/event-stream", *reply.headers]
    writer.write("\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode())
    chat = "messages" in asked
    if chat:
        _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for gap in reply.gaps:
        await asyncio.sleep(gap)
        _event(writer, {"choices": [{"delta": {"content": " a"}} if chat else {"text": " a"}]})
        await writer.drain()
    if reply.hangs:
        await asyncio.sleep(3600)
    if reply.raw is not None:
        writer.write(reply.raw)
    else:
        _event(writer, {"choices": [{"delta": {}, "finish_reason": "length"}]})
        if reply.usage:
            prompt, output = reply.usage
            _event(writer, {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})
        writer.write(event("[DONE]") + b"0\r\n\r\n")
    await writer.drain()


def _event(writer: asyncio.StreamWriter, values: dict[str, Any]) -> None:
    writer.write(event(json.dumps(values)))


def event(data: str) -> bytes:
    """One event in a chunk of its own."""
    content = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(content), content)


@contextmanager
def stub_server(script: Script) -> Iterator[Stub]:
    """Serves on a free port, from a thread of its own."""
    stub, ready = Stub(), threading.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        starting = asyncio.start_server(lambda r, w: stub.serve(script, r, w), "127.0.0.1", 0)
        server = loop.run_until_complete(starting)
        stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=10))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stub
        for _ in range(500):  # what the client has left alone is noticed within moments
            if stub.under_way:
                time.sleep(0.01)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


if __name__ == "__main__":
    chunks, gap = int(sys.argv[1]), float(sys.argv[2])
    with stub_server(lambda index, body: Reply((gap,) * chunks, (100, chunks))) as running:
        print(running.url, flush=True)
        sys.stdin.read()
