"""The routes. Every answer that is an error has OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
import logging
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from llmcore.errors import LlmcoreError
from llmcore_server import completions, embeddings
from llmcore_server.fields import (
    ChatFields,
    CompletionFields,
    DetokenizeFields,
    EmbeddingFields,
    Fields,
    TokenizeFields,
)
from llmcore_server.network import HEADER_BYTES, is_loopback
from llmcore_server.refusals import Refusal, refused
from llmcore_server.service import Service

LOG = logging.getLogger("llmcore.server")
OPEN_PATHS = ("/health", "/")  # answered without a key; the page has no more in it than its source
PAGE = Path(__file__).with_name("chat.html")
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)
MOST_KEYS = 64
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Body = TypeVar("Body", bound=Fields)


class Guard:
    """Turns away who has no key, before anything is read."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = f"Bearer {api_key}".encode() if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            await Refusal(431, "the headers are too long").response()(scope, receive, send)
            return
        if not self._key and not _from_here(headers):
            refusal = Refusal(403, "without an API key, only this machine's own pages and programs are answered")
            await refusal.response()(scope, receive, send)
            return
        if self._key and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                refusal = Refusal(401, "the API key is missing or wrong", code="invalid_api_key")
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _from_here(headers: dict[bytes, bytes]) -> bool:
    """Whether host and origin name this machine: another site's page may have found our address (DNS rebinding)."""
    urls = [f"http://{headers.get(b'host', b'localhost').decode('latin-1')}"]
    if b"origin" in headers:
        urls.append(headers[b"origin"].decode("latin-1"))
    try:
        return all(is_loopback(urlsplit(url).hostname or "") for url in urls)
    except ValueError:
        return False


async def body_of(request: Request, kind: type[Body], service: Service) -> Body:
    """The body as ``kind`` says it must be.

    Raises:
        Refusal: what :meth:`Service.reading` raises; 400 where it is no JSON.
        ValidationError: it is something else.
    """
    said = request.headers.get("content-length", "0")
    data = bytearray()
    with service.reading() as take:
        if said.isdigit() and int(said) > service.limits.body_bytes:
            take(int(said))
        async for piece in request.stream():
            take(len(piece))
            data += piece
        try:
            found = from_json(bytes(data), cache_strings="keys")  # else 16,384 of what clients said stay in memory
        except ValueError as error:
            raise Refusal(400, f"the body is no JSON: {error}", code="invalid_json") from error
        if isinstance(found, dict) and len(found) > MOST_KEYS:
            raise Refusal(400, f"the body has {len(found)} keys", code="invalid_value")
        return kind.model_validate(found)


def make_app(service: Service) -> ASGIApp:
    """The server's application."""
    app = FastAPI(title="llmcore", version=version("llmcore"), docs_url=None, redoc_url=None)
    _handle_errors(app)
    _add_models(app, service)
    _add_completions(app, service)
    _add_embeddings(app, service)
    _add_tokens(app, service)
    _add_state(app, service)
    return Guard(app, service.limits.api_key)


def _handle_errors(app: FastAPI) -> None:
    async def ours(_: Request, error: Exception) -> Response:
        return refused(error).response()

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return Refusal(error.status_code, str(error.detail)).response()

    async def unforeseen(_: Request, error: Exception) -> Response:
        LOG.error("a request failed", exc_info=error)
        return Refusal(500, "the server has made a mistake", code="internal_error").response()

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    app.add_exception_handler(ClientDisconnect, gone)
    for kind in (Refusal, ValidationError, LlmcoreError):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await completions.chat(service, await body_of(request, ChatFields, service), request)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request) -> Response:
        fields = await body_of(request, CompletionFields, service)
        return await completions.complete(service, fields, request)


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", response_model=None)
    async def embed(request: Request) -> Response:
        return await embeddings.embed(service, await body_of(request, EmbeddingFields, service))


def _add_models(app: FastAPI, service: Service) -> None:
    def described() -> dict[str, object]:
        spec = service.llm.llm.engine.scheduler
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "llmcore",
            "max_model_len": spec.max_context,
        }

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [described()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        service.check_model(name)
        return JSONResponse(described())


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        fields = await body_of(request, TokenizeFields, service)
        service.check_model(fields.model)
        llm = service.llm
        if (fields.prompt is None) == (fields.messages is None):
            raise Refusal(400, "give either prompt or messages", param="prompt", code="invalid_value")
        if fields.messages is not None:
            ids = await llm.chat_ids([message.plain() for message in fields.messages])
        else:
            assert fields.prompt is not None
            llm.check_size(fields.prompt)
            encode = partial(llm.llm.tokenizer.encode, add_special=fields.add_special_tokens)
            ids = await asyncio.to_thread(encode, fields.prompt)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": llm.llm.engine.scheduler.max_context})

    @app.post("/detokenize")
    async def detokenize(request: Request) -> JSONResponse:
        fields = await body_of(request, DetokenizeFields, service)
        service.check_model(fields.model)
        tokenizer = service.llm.llm.tokenizer
        wrong = next((token for token in fields.tokens if not 0 <= token < tokenizer.vocab_size), None)
        if wrong is not None:
            raise Refusal(400, f"there is no token {wrong}", param="tokens", code="invalid_value")
        return JSONResponse({"prompt": tokenizer.decode(fields.tokens, skip_special=False)})


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/")
    async def page() -> Response:
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/version")
    async def tell_version() -> JSONResponse:
        return JSONResponse({"version": version("llmcore")})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=METRICS_TYPE)
