"""``llmcore serve``: a model behind OpenAI's API."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from types import FrameType
from typing import Any

from llmcore.cli.model import load, model_as_setting, settings
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import NO_CACHE
from llmcore.config.command import Command, Job
from llmcore.config.models import name_of
from llmcore.config.schema import Config, ServerConfig
from llmcore.errors import ConfigError, LlmcoreError
from llmcore_server.network import HEADER_BYTES, is_loopback

COMMAND = Command("llmcore serve", "answer OpenAI's API over HTTP: completions, conversations", (NO_CACHE,), "serve")
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
    listener = listen(config)
    sys.setswitchinterval(SWITCH_S)
    return asyncio.run(_serve(job, key, listener))


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
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at server.host={config.host} server.port={config.port}: {error}",
            remedy="name another port; 0 takes a free one",
        ) from error


async def _serve(job: Job, key: str, listener: socket.socket) -> int:
    from llmcore_server.app import make_app
    from llmcore_server.service import Service

    config = job.config.server
    name = config.model_name or name_of(job.config.model.ref)
    service = Service(name, limits(config, key))
    server = make_server(service, make_app(service), config.drain_s)
    host, port = listener.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port} loads {name} …", file=sys.stderr, flush=True)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await service.load(lambda: load(settings(job)))
        print(f"{name} is ready", file=sys.stderr, flush=True)
    except LlmcoreError as error:
        server.should_exit = True
        await serving
        raise error from None
    await serving
    return 0


def make_server(service: Any, app: Any, drain_s: float) -> Any:
    """A uvicorn server that answers what is under way before it stops."""
    import uvicorn

    from llmcore_server.connections import Connection

    class Server(uvicorn.Server):
        """The first signal lets answers come to their end, the second does not."""

        draining: asyncio.Task[None] | None = None

        def handle_exit(self, _signal: int, _frame: FrameType | None) -> None:
            """In a signal handler."""
            asyncio.get_event_loop().call_soon_threadsafe(self.leave)

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
        log_level="warning",
        access_log=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    return Server(config)
