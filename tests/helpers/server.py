"""A server of ours in a thread of the test, on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from openai import OpenAI

from llmcore.config.schema import ServerConfig
from llmcore.llm import LLM
from llmcore_server.app import make_app
from llmcore_server.command import listen, make_server
from llmcore_server.service import Limits, Service

PATIENCE_S = 60


@dataclass
class Running:
    """A server, and how to talk to it."""

    service: Service
    server: object
    loop: asyncio.AbstractEventLoop
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)

    def http(self) -> httpx.Client:
        """Bare HTTP."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def wait_for(self, state: str) -> None:
        """Until the health check says so."""
        with self.http() as http:
            while http.get("/health").json()["status"] != state:
                threading.Event().wait(0.02)

    def wait_idle(self) -> None:
        """Until no request is under way."""
        while self.service.loaded is None or self.service.loaded.unfinished:
            threading.Event().wait(0.01)


@contextmanager
def running(
    open_model: Callable[[], LLM], limits: Limits | None = None, *, drain_s: float = 5.0, wait: bool = True
) -> Iterator[Running]:
    """The server of a model, stopped at the end."""
    listener = listen(ServerConfig(port=0))
    ready: list[Running] = []
    started = threading.Event()

    async def serve() -> None:
        service = Service("tiny", limits or Limits())
        server = make_server(service, make_app(service), drain_s)
        ready.append(Running(service, server, asyncio.get_running_loop(), listener.getsockname()[1]))
        started.set()
        loading = asyncio.create_task(service.load(open_model))
        await server.serve([listener])
        await asyncio.wait_for(loading, PATIENCE_S)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait()
    try:
        if wait:
            ready[0].wait_for("ready")
        yield ready[0]
    finally:
        ready[0].loop.call_soon_threadsafe(ready[0].server.leave)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
