"""``llmcore serve``: a model behind OpenAI's API."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmcore.cli.model import load, model_as_setting, settings
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import NO_CACHE
from llmcore.config.command import Command, Job
from llmcore.config.models import name_of
from llmcore.config.schema import Config, ServerConfig
from llmcore.errors import ConfigError
from llmcore_server.network import HEADER_BYTES, is_loopback

if TYPE_CHECKING:
    from llmcore.llm import LLM

COMMAND = Command("llmcore serve", "answer OpenAI's API over HTTP: completions, conversations", (NO_CACHE,), "serve")
ENDED = 128  # more than the number of the signal that ended a process, as shells report it
STOPPED_S = 10  # to stop without waiting for answers
SWITCH_S = 2e-4  # how long other threads may keep the engine's from going on to its next step


def main(argv: Sequence[str]) -> int:
    """Serves the model of a job until it is told to stop; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """One server."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the server needs {error.name}", remedy="pip install 'llmcore[server]'") from error
    check_unused(job.config)
    config = job.config.server
    key = api_key(config)
    bounds = limits(config, key)
    listener = listen(config)
    sys.setswitchinterval(SWITCH_S)
    name = config.model_name or name_of(job.config.model.ref)
    host, port = listener.getsockname()[:2]
    with Serving(name, bounds, listener, config.drain_s) as serving:
        print(f"http://{f'[{host}]' if ':' in host else host}:{port} loads {name} …", file=sys.stderr, flush=True)
        llm = load(settings(job))
        llm.runner.weights.read_mapped()
        serving.answer(llm)
    return 0


def check_unused(config: Config) -> None:
    """Raises :class:`ConfigError` for a setting of answers: each request says for itself what it wants."""
    plain = Config()
    given = [f"sampling.{f.name}" for f in fields(plain.sampling) if _differs(config.sampling, plain.sampling, f.name)]
    given += [name for name in ("max_new_tokens", "seed") if _differs(config, plain, name)]
    if given:
        raise ConfigError(f"{given[0]} is given, but each request says how it is answered", remedy="leave it out")


def _differs(config: Any, plain: Any, name: str) -> bool:
    return bool(getattr(config, name) != getattr(plain, name))


def api_key(config: ServerConfig) -> str:
    """The key that clients must show; empty for none.

    Raises:
        ConfigError: there is none, and other machines could reach the server.
    """
    key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
    if not key and not is_loopback(config.host):
        raise ConfigError(
            f"server.host={config.host} is open to other machines, and there is no API key",
            remedy=f"put one into the environment variable {config.api_key_env or 'that server.api_key_env names'}",
        )
    return key


def limits(config: ServerConfig, key: str) -> Any:
    """What the server takes on; raises :class:`ConfigError` where one bound leaves no room for another."""
    from llmcore_server.service import Limits

    if config.max_bodies_mb < config.max_body_mb:
        raise ConfigError(
            f"server.max_bodies_mb={config.max_bodies_mb} has no room for server.max_body_mb={config.max_body_mb}",
            remedy="all bodies together may be no smaller than one",
        )
    return Limits(
        config.max_waiting,
        config.max_body_mb << 20,
        key,
        config.max_bodies_mb << 20,
        config.max_connections,
        config.read_timeout_s,
    )


def listen(config: ServerConfig) -> socket.socket:
    """The socket; raises :class:`ConfigError` where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listener = socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at server.host={config.host} server.port={config.port}: {error}",
            remedy="name another port; 0 takes a free one",
        ) from error
    # Inherited by every connection: asyncio does so for sockets of its own, not for those of a listener that names no
    # protocol. The end of an answer would wait, some 40 ms, for the client's delayed ACK of its beginning.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Serving:
    """A server in a thread of its own, so that the main thread can load the model: there signals can end that at once.

    What is on its way to the cache directory is removed then, as for any interrupt.
    """

    def __init__(self, name: str, limits: Any, listener: socket.socket, drain_s: float) -> None:
        self._make = name, limits, drain_s
        self._listener = listener
        self._ready = threading.Event()
        self._loaded = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="llmcore-server", daemon=True)
        self._handlers: dict[int, Any] = {}

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from llmcore_server.app import make_app
        from llmcore_server.service import Service

        name, limits, drain_s = self._make
        self._loop, self.service = asyncio.get_running_loop(), Service(name, limits)
        self._server = make_server(self.service, make_app(self.service), drain_s)
        self._ready.set()
        await self._server.serve([self._listener])

    def __enter__(self) -> Serving:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._told)
        self._thread.start()
        self._ready.wait()
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops, whatever is under way."""
        self._leave(self._stop)
        self._thread.join(STOPPED_S)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _told(self, number: int, _: FrameType | None) -> None:
        """In a signal's handler: answers come to their end; there are none as long as the model is loaded."""
        if self._loaded:
            self._leave(self._server.leave)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(ENDED + number)

    def _leave(self, how: Callable[[], None]) -> None:
        with suppress(RuntimeError, AttributeError):  # it has ended, or never begun
            self._loop.call_soon_threadsafe(how)

    def _stop(self) -> None:
        self._server.force_exit = self._server.should_exit = True

    def answer(self, llm: LLM) -> None:
        """Answers with ``llm`` until a signal comes."""
        self._check()
        self._loaded = True
        asyncio.run_coroutine_threadsafe(self.service.load(lambda: llm), self._loop).result()
        print(f"{self.service.name} is ready", file=sys.stderr, flush=True)
        self._thread.join()
        self._check()

    def _check(self) -> None:
        """Raises what has ended the server's thread."""
        if self._error is not None:
            raise self._error


def make_server(service: Any, app: Any, drain_s: float) -> Any:
    """A uvicorn server that answers what is under way before it stops."""
    import uvicorn

    from llmcore_server.connections import Connection

    class Server(uvicorn.Server):
        """Told to leave, it lets answers come to their end; told again, it does not."""

        draining: asyncio.Task[None] | None = None

        def leave(self) -> None:
            """Begins to stop, or stops at once."""
            if self.draining is None:
                self.draining = asyncio.ensure_future(self._drain())
            else:
                self.force_exit = self.should_exit = True

        async def _drain(self) -> None:
            await service.drain(drain_s)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=partial(Connection, service.limits),  # type: ignore[arg-type]  # it is only ever called
        ws="none",
        lifespan="off",  # the application has nothing to begin or to end with
        log_level="warning",
        access_log=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    return Server(config)
