"""What requests may say, field by field. What is not declared here is refused by name, never ignored.

Types are strict: ``"1"`` is no number and ``true`` no integer. A field that is null counts as absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmcore.engine.constraint import Constraint
from llmcore.engine.sampling_params import MAX_STOPS, SamplingParams
from llmcore.errors import RequestError

MOST_CHOICES = 16
MOST_TOP_LOGPROBS = 20
MOST_PROMPTS = 64
MOST_TEXTS = 2048
MOST_TOOLS = 128
MOST_PARTS, MOST_MESSAGES, MOST_BIASES, MOST_IDS = 1024, 4096, 1024, 1 << 20
TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")
FUNCTION_NAME = r"^[A-Za-z0-9_-]{1,64}$"
MOST_TOKENS = 2**31
SEEDS = 2**63 - 1
PRIORITIES = 2**31
MOST_SALT = 1024


class Fields(BaseModel):
    """Base of all: strict, closed."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class StreamOptions(Fields):
    """What a stream says beside the answer."""

    include_usage: bool | None = None


Bias = Annotated[float, Field(ge=-100, le=100)]


class NamedSchema(Fields):
    """A JSON schema."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: Annotated[dict[str, Any] | bool, Field(alias="schema")]


class ResponseFormat(Fields):
    """The form of an answer; ``regex`` and ``grammar`` (llguidance's Lark) are not OpenAI's."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: NamedSchema | None = None
    regex: str | None = None
    grammar: str | None = None

    def constraint(self) -> Constraint | None:
        """As the engine takes it.

        Raises:
            RequestError: what the type needs is missing, or what it does not is there.
        """
        schema = None if self.json_schema is None else json.dumps(self.json_schema.json_schema)
        texts = {"json_schema": schema, "regex": self.regex, "grammar": self.grammar}
        for name, text in texts.items():
            if (text is None) == (self.type == name):
                wrong = "is missing" if text is None else f"has no place beside type {self.type!r}"
                raise RequestError(f"{name} {wrong}", field="response_format")
        if self.type == "text":
            return None
        return Constraint("lark" if self.type == "grammar" else self.type, texts.get(self.type) or "")


class Sampling(Fields):
    """What both kinds of completion share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, le=SEEDS)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MOST_BIASES)] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    priority: Annotated[int, Field(ge=-PRIORITIES, le=PRIORITIES)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MOST_SALT)] | None = None

    def params(self, **more: Any) -> SamplingParams:
        """As the engine takes them; ``more`` is what the two kinds say in different words.

        Raises:
            RequestError: a value that cannot be, naming the field.
        """
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options are given, but no stream is asked for", field="stream_options")
        given: dict[str, Any] = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,  # -1 is off too, as in vLLM
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else self.seed % (SEEDS + 1),
            "stop": stop or None,
            "stop_token_ids": tuple(self.stop_token_ids) if self.stop_token_ids else None,
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "logit_bias": self._biases(),
            "constraint": None if self.response_format is None else self.response_format.constraint(),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None}, **more)

    def standing(self) -> dict[str, Any]:
        """As the engine takes it beside the parameters: who goes first, and with whom pages are shared."""
        return {"priority": self.priority or 0, "salt": self.cache_salt or ""}

    def _biases(self) -> dict[int, float] | None:
        """By token; JSON has them as text."""
        if not self.logit_bias:
            return None
        wrong = next((token for token in self.logit_bias if not TOKEN_ID.fullmatch(token)), None)
        if wrong is not None:
            raise RequestError(f"logit_bias has the key {wrong!r}, which is no token id", field="logit_bias")
        return {int(token): bias for token, bias in self.logit_bias.items()}

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    def drawn(self, params: SamplingParams) -> list[SamplingParams]:
        """The parameters of each answer to a prompt: a seed is the first one's, and each that follows has the next."""
        if params.seed is None:
            return [params] * self.choices
        return [replace(params, seed=(params.seed + choice) % (SEEDS + 1)) for choice in range(self.choices)]


class TextPart(Fields):
    """A piece of a message; images and sounds are not supported."""

    type: Literal["text"]
    text: str


class FunctionCall(Fields):
    """What the model asked for in an earlier turn."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    arguments: str


class CallOfTool(Fields):
    """A call in an earlier turn."""

    id: str | None = None
    type: Literal["function"]
    function: FunctionCall

    def plain(self) -> dict[str, Any]:
        """As chat templates read it: the arguments are data, where they can be read."""
        try:
            arguments = json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class Function(Fields):
    """A function that the model may ask to be called; ``parameters`` are a JSON schema."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool; there are functions only."""

    type: Literal["function"]
    function: Function


class Named(Fields):
    """The name of a function."""

    name: str


class ChosenTool(Fields):
    """The one function that must be called."""

    type: Literal["function"]
    function: Named


class Message(Fields):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MOST_PARTS, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[CallOfTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls belong to the assistant")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("a tool_call_id belongs to a tool's message")
        if self.content is None and not self.tool_calls:
            raise ValueError("the message has no content")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates read it; a developer is what newer models call the system."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = [call.plain() for call in self.tool_calls]
        optional = {"name": self.name, "tool_call_id": self.tool_call_id}
        return plain | {name: value for name, value in optional.items() if value is not None}


class ChatFields(Sampling):
    """A body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None

    def functions(self) -> list[dict[str, Any]]:
        """The functions that the model is told of.

        Raises:
            RequestError: a choice among none, or of one that is not there.
        """
        tools = [] if self.tool_choice == "none" else self.tools or []
        functions = [tool.function.model_dump(exclude_none=True) for tool in tools]
        if self.tool_choice not in (None, "none", "auto") and not functions:
            raise RequestError("tool_choice is given, but there are no tools", field="tool_choice")
        if len({function["name"] for function in functions}) < len(functions):
            raise RequestError("two tools have the same name", field="tools")
        if self.must_choose and self.response_format is not None:
            raise RequestError("a call that must be made has its own form", field="response_format")
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in (
            function["name"] for function in functions
        ):
            raise RequestError(f"there is no tool {self.tool_choice.function.name!r}", field="tool_choice")
        return functions

    @property
    def must_choose(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ChosenTool)

    def must_call(self) -> list[dict[str, Any]]:
        """The functions one of which must be called; none where the model may say something else."""
        if isinstance(self.tool_choice, ChosenTool):
            return [each for each in self.functions() if each["name"] == self.tool_choice.function.name]
        return self.functions() if self.tool_choice == "required" else []

    def sampling(self) -> SamplingParams:
        """As the engine takes them."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs is given, but logprobs is not true", field="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError(
                "max_tokens and max_completion_tokens are the same", field="max_tokens", remedy="give one"
            )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.params(max_tokens=self.max_completion_tokens or self.max_tokens, logprobs=logprobs)


Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]


class CompletionFields(Sampling):
    """A body of ``/v1/completions``."""

    prompt: str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool | None = None

    def sampling(self) -> SamplingParams:
        """As the engine takes them; OpenAI's 16 tokens where nothing else is asked for."""
        return self.params(max_tokens=self.max_tokens or 16, logprobs=self.logprobs)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of the prompts."""
        return _several(self.prompt)


class EmbeddingFields(Fields):
    """A body of ``/v1/embeddings``; ``pooling`` is not OpenAI's."""

    model: str
    input: str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MOST_TEXTS, fail_fast=True)]
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """Each of the texts."""
        return _several(self.input)


def _several(given: Any) -> list[str | list[int]]:
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class TokenizeFields(Fields):
    """A body of ``/tokenize``: text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool = True


class DetokenizeFields(Fields):
    """A body of ``/detokenize``."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=MOST_IDS, fail_fast=True)]
