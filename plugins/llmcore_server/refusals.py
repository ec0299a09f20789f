"""Errors as OpenAI's clients understand them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from llmcore.errors import BusyError, ChatTemplateError, GenerationError, LlmcoreError, RequestError, UnanswerableError

BUSY_S = 5  # until another try has a chance, in seconds


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: of the HTTP answer.
        param: the field at fault.
        code: a word that programs look at.
        retry_after: seconds until it is worth another try.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP answer."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else None
        return JSONResponse(self.body, self.status, headers)


def refused(error: Exception) -> Refusal:
    """What an error of ours, or of the validation, means to a client."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, UnanswerableError):  # before what it is a kind of: clients ask again after a 500
        return Refusal(400, _said(error), code="unanswerable")
    if isinstance(error, GenerationError):
        return Refusal(500, str(error), code="generation_failed")
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if "prompt and answer may have" in error.message else "invalid_value"
        return Refusal(400, _said(error), param=error.field or None, code=code)
    if isinstance(error, ChatTemplateError):
        return Refusal(400, _said(error), param="messages", code="chat_template")
    if isinstance(error, BusyError):
        return Refusal(429, _said(error), code="queue_full", retry_after=BUSY_S)
    if isinstance(error, LlmcoreError):
        return Refusal(400, _said(error), code="invalid_value")
    raise error


def _said(error: LlmcoreError) -> str:
    return f"{error.message}; {error.remedy}" if error.remedy else error.message


def _invalid(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a body, by the name of its field."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = [str(part) for part in first["loc"] if not _is_variant(part)]
    field = ".".join(path) or None
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is no JSON: {first['msg']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return Refusal(
            400, f"{field} is no parameter here, or one that is not supported", param=field, code="unknown_parameter"
        )
    if first["type"] == "missing":
        return Refusal(400, f"{field} is missing", param=field, code="missing_required_parameter")
    return Refusal(400, f"{field}: {first['msg']}" if field else first["msg"], param=field, code="invalid_value")


def _is_variant(part: Any) -> bool:
    """Whether a part of a place names one of several types that a field may have, not a field."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool", "constrained-str"))
