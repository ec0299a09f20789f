"""A conversation as its model was trained to read it.

A model brings a jinja template that lays out messages as text with control tokens between. Two things are kept apart
here that are one string elsewhere: what the template says, where ``<|im_end|>`` is a control token, and what a message
says, where it is ten characters. Before a template is compiled, control tokens in *its* literals (and in the variables
``bos_token`` …) become single private characters that occur in no message; after rendering only these are control
tokens. Messages pass through untouched, so a template may trim, split and search them as it likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from llmcore.errors import ChatTemplateError, RequestError
from llmcore.text.tokenizer import Part, Tokenizer
from llmcore.weights.checkpoint import TokenizerSource

Message = Mapping[str, Any]
"""``{"role": "user", "content": "…"}``, and whatever else the template reads (``tool_calls``, ``name`` …)."""

MAX_SOURCE = 1 << 16  # characters; the longest in use have 17,000
MAX_COMPILED = 8
MAX_DEPTH = 50
LAST_PRIVATE = 0x10FFFD  # the end of Unicode's private use planes: marks are taken from here down
PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
ROLE = re.compile(r"[A-Za-z][\w.-]{0,63}")
RAW = "give the prompt as it is with --raw, or use a model that was trained to chat"


class ChatTemplate:
    """A model's chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None, origin: str = "") -> None:
        """Args:
            source: jinja.
            special_tokens: variables of the template: role → text (``{"bos_token": "<s>"}``).
            origin: the file it comes from, for messages.

        Raises:
            ChatTemplateError: it is too long. Whether it is a template shows when it is first used.
        """
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.origin = origin
        self._compiled: dict[tuple[tuple[str, str], ...], CodeType] = {}
        if len(source) > MAX_SOURCE:
            raise ChatTemplateError(f"{self._name} is longer than {MAX_SOURCE} characters", remedy=RAW)

    @classmethod
    def of(cls, source: TokenizerSource) -> ChatTemplate:
        """The template that a checkpoint brings; raises :class:`ChatTemplateError` where it brings none."""
        origin = "" if source.path is None else str(source.path)
        if not source.chat_template:
            place = f"{origin}: " if origin else ""
            raise ChatTemplateError(f"{place}the model has no chat template", remedy=RAW)
        return cls(source.chat_template, source.special_tokens, origin)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as text, the texts of control tokens included.

        Args:
            messages: the turns so far.
            add_generation_prompt: end where the assistant's answer begins.
            variables: what else the template reads (``tools``, ``enable_thinking`` …), as plain data.

        Raises:
            RequestError: a message is not one, or is no text.
            ChatTemplateError: the template fails, refuses the messages, or does too much.
        """
        return self._run({}, _data(messages, add_generation_prompt, variables))

    def parts(
        self,
        messages: Sequence[Message],
        specials: Mapping[str, int],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[Part]:
        """The conversation as plain texts and ids of control tokens; arguments and errors as for :meth:`render`.

        Args:
            specials: text → id of all control tokens.
        """
        data = _data(messages, add_generation_prompt, variables)
        free = _unused(len(specials), [self.source, *_strings(data)])
        if len(free) < len(specials):
            field = _most_private(data)
            raise RequestError(
                f"{field} has so many private-use characters that none are left to stand for control tokens",
                field=field,
                remedy="text does not have them: is it encoded data?",
            )
        marks = dict(zip(specials, free, strict=True))
        meant = {mark: specials[text] for text, mark in marks.items()}
        rendered = self._run(marks, data)
        found = re.split(f"([{''.join(map(re.escape, meant))}])", rendered) if meant else [rendered]
        return [meant.get(part, part) for part in found if part]

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The conversation as token ids, where no text in a message becomes a control token. See :meth:`render`."""
        specials = tokenizer.special_texts()
        return tokenizer.encode_parts(
            self.parts(messages, specials, add_generation_prompt=add_generation_prompt, **variables)
        )

    @property
    def _name(self) -> str:
        return f"{self.origin}: the chat template" if self.origin else "the chat template"

    def _code(self, marks: Mapping[str, str]) -> CodeType:
        """The compiled template in which control tokens are marked."""
        from llmcore.text import sandbox

        key = tuple(marks.items())
        if key not in self._compiled:
            try:
                code = sandbox.compile_template(self.source, marks)
            except (Exception, RecursionError) as error:  # jinja passes on whatever its parser and Python's raise
                raise self._failed("cannot be read", error, sandbox.line_of(error)) from error
            if len(self._compiled) == MAX_COMPILED:  # a text with the usual marks in it costs another one
                self._compiled.clear()
            self._compiled[key] = code
        return self._compiled[key]

    def _run(self, marks: Mapping[str, str], data: Mapping[str, Any]) -> str:
        from llmcore.text import sandbox

        code = self._code(marks)
        special = {role: marks.get(text, text) for role, text in self.special_tokens.items()}
        try:
            return sandbox.run_template(code, {**special, **data})
        except (Exception, RecursionError) as error:  # a template can raise anything that an expression can
            raise self._failed("failed", error, sandbox.line_of(error)) from error

    def _failed(self, what: str, error: BaseException, line: int | None) -> ChatTemplateError:
        reason = "it calls itself too deeply" if isinstance(error, RecursionError) else str(error) or repr(error)
        place = "" if line is None else f" at line {line}"
        return ChatTemplateError(f"{self._name} {what}{place}: {reason[:500]}", remedy=RAW)


def _data(messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template is given, as plain data of its own."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("a conversation is a list of messages, at least one", field="messages")
    return {
        "tools": None,
        "documents": None,
        **{name: _plain(value, name) for name, value in variables.items()},
        "messages": [_message(message, f"messages[{index}]") for index, message in enumerate(messages)],
        "add_generation_prompt": bool(add_generation_prompt),
    }


def _message(message: Any, field: str) -> dict[str, Any]:
    """``message``, checked; parts that are all text become one text, which every template understands."""
    if not isinstance(message, Mapping):
        raise RequestError(f"a message is a mapping, not a {type(message).__name__}", field=field)
    plain: dict[str, Any] = _plain(message, field)
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise RequestError(f"the role is {role!r:.80}", field=f"{field}.role", remedy="system, user, assistant or tool")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
            raise RequestError("a part of the content has no type", field=f"{field}.content")
        if all(part["type"] == "text" and isinstance(part.get("text"), str) for part in content):
            plain["content"] = "".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"the content is a {type(content).__name__}, not text", field=f"{field}.content")
    return plain


def _plain(value: Any, field: str, depth: int = 0) -> Any:
    """A copy of JSON-like data, so that a template sees nothing else and nothing changes under it."""
    if depth > MAX_DEPTH:
        raise RequestError(f"is nested more than {MAX_DEPTH} deep", field=field)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError("has a key that is not text", field=field)
        return {str(key): _plain(inner, f"{field}.{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{field}[{index}]", depth + 1) for index, inner in enumerate(value)]
    raise RequestError(f"is a {type(value).__name__}, which is not plain data", field=field)


def _strings(value: Any) -> Iterator[str]:
    """All texts in JSON-like data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _private(texts: Iterable[str]) -> set[str]:
    """The private characters that occur in ``texts``."""
    return {character for text in texts for character in PRIVATE.findall(text)}


def _most_private(data: Mapping[str, Any]) -> str:
    """Which message, or which other variable, has more private characters than the others."""
    fields = {name: value for name, value in data.items() if name != "messages"}
    fields |= {f"messages[{index}]": message for index, message in enumerate(data["messages"])}
    return max(fields, key=lambda field: len(_private(_strings(fields[field]))))


def _unused(count: int, texts: Sequence[str]) -> list[str]:
    """``count`` private characters that are in none of ``texts``."""
    used = _private(texts)
    free = (chr(code) for code in range(LAST_PRIVATE, 0xEFFFF, -1) if chr(code) not in used and code & 0xFFFE != 0xFFFE)
    return [character for _, character in zip(range(count), free, strict=False)]
