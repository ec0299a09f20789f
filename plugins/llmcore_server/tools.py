"""Calls of the client's functions: how models write them, found in what a model says.

Two ways of writing are known, told apart by the chat template: Hermes' and Qwen's ``<tool_call>{"name": …,
"arguments": {…}}</tool_call>``, and Llama 3's bare ``{"name": …, "parameters": {…}}``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called; ``arguments`` are JSON."""

    name: str
    arguments: str

    def body(self, index: int | None = None) -> dict[str, Any]:
        """As it is sent; ``index`` is its number in a stream."""
        function = {"name": self.name, "arguments": self.arguments}
        body = {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        return body if index is None else {"index": index, **body}


@dataclass(frozen=True)
class Writing:
    """How a model writes calls.

    Attributes:
        arguments: the key of a call's arguments.
        marked: whether calls stand between marks.
    """

    arguments: str
    marked: bool

    def schema(self, functions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of ``functions``: mappings with ``name`` and ``parameters``."""
        return {"anyOf": [self._call(function) for function in functions]}

    def _call(self, function: dict[str, Any]) -> dict[str, Any]:
        properties = {
            "name": {"const": function["name"]},
            self.arguments: function.get("parameters") or {"type": "object"},
        }
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def grammar(self, functions: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """Kind and text of the constraint under which an answer is a call of one of ``functions``."""
        schema = json.dumps(self.schema(functions))
        if not self.marked:
            return "json_schema", schema
        return "lark", f'start: "{OPEN}\\n" call "\\n{CLOSE}"\ncall: %json {schema}\n'

    def call_in(self, text: str) -> ToolCall | None:
        """The call that a JSON text is, if it is one."""
        try:
            found = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not NAME.fullmatch(found["name"]):
            return None
        arguments = found.get(
            self.arguments, found.get("arguments", found.get("parameters", {} if self.marked else None))
        )
        if not isinstance(arguments, dict):
            return None
        try:
            return ToolCall(found["name"], _written(arguments))
        except ValueError:  # a number that is infinite once it is read
            return None


MARKED, BARE = Writing("arguments", marked=True), Writing("parameters", marked=False)


def writing_of(template: str) -> Writing | None:
    """How a model with this chat template writes calls; None where the template knows of no tools."""
    if "tools" not in template:
        return None
    return MARKED if OPEN in template else BARE


class Scanner:
    """Takes an answer piece by piece: what is text comes out at once, what may be a call is held back.

    What comes out, and which calls are found, does not depend on the pieces. Text is lost in one place: white space
    between a call and what is before or behind it, where that is another call or the end.
    """

    def __init__(self, writing: Writing, names: frozenset[str] | None = None, *, several: bool = True) -> None:
        """Args:
        names: of the functions that there are; any by default.
        several: find more than one call.
        """
        self._writing = writing
        self._names = names
        self._several = several
        self._held = ""
        self._begun = False  # something other than white space came out
        self._object = ObjectScan()  # of the mark that _held begins with
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> str:
        """Adds a piece; returns the text that is surely none of a call."""
        self._held += text
        return self._marked() if self._writing.marked else self._bare()

    def finish(self) -> str:
        """The rest, once the answer has ended: text, if it was no call after all."""
        if self._writing.marked:
            out = self._marked(ended=True)
            held, self._held = self._held, ""
            return out + ("" if self.calls and not held.strip() else held)
        held, self._held = self._held, ""
        found = [self._call(part) for part in _objects(held)]
        calls = [call for call in found if call is not None]
        if not calls or len(calls) < len(found):
            return held
        for call in calls:
            self._add(call)
        return ""

    def _call(self, text: str) -> ToolCall | None:
        call = self._writing.call_in(text)
        return call if call is not None and (self._names is None or call.name in self._names) else None

    def _add(self, call: ToolCall) -> None:
        if self._several or not self.calls:
            self.calls.append(call)

    def _marked(self, *, ended: bool = False) -> str:
        """Takes from what is held all that is decided; ``ended``: no more comes."""
        out = ""
        while True:
            blank = len(self._held) - len(self._held.lstrip())
            if not self._held.startswith(OPEN, blank):
                cut = self._next_mark(ended)
                out, self._held = out + self._held[:cut], self._held[cut:]
                if not self._held.lstrip().startswith(OPEN):
                    return out
                continue
            size = self._block(blank, ended)
            if size is None:
                return out
            block, self._held, self._object = self._held[:size], self._held[size:], ObjectScan()
            call = self._call(block[blank + len(OPEN) :].strip().removesuffix(CLOSE))
            if call is None:
                out += block
            else:
                self._add(call)

    def _next_mark(self, ended: bool) -> int:
        """Where what is held may be a mark, with the white space before it: all before is text."""
        at = self._held.find(OPEN)
        if at < 0:
            at = len(self._held) - (0 if ended else _overlap(self._held, OPEN))
        return len(self._held[:at].rstrip())

    def _block(self, blank: int, ended: bool) -> int | None:
        """How much of what is held belongs to the mark after ``blank`` characters; None as long as that is open.

        All up to the closing mark behind an object; the mark alone where none follows it. The closing mark may be
        missing at the end of the answer.
        """
        begin = blank + len(OPEN)
        end = self._object.end_in(self._held, begin)
        if end is None and not ended:
            return None
        if not end:
            return begin
        rest = self._held[end:].lstrip()
        if rest.startswith(CLOSE):
            return len(self._held) - len(rest) + len(CLOSE)
        if CLOSE.startswith(rest):
            return (end if not rest else begin) if ended else None
        return begin

    def _bare(self) -> str:
        if not self._begun and self._held.lstrip()[:1] in ("", "{"):
            return ""
        self._begun = True
        out, self._held = self._held, ""
        return out


class ObjectScan:
    """Where a JSON object ends, looked for in a text that grows; braces in its strings are none.

    It goes on where it was, so that a long object costs no more than its length.
    """

    def __init__(self) -> None:
        self._at = -1  # how far it has come
        self._depth = 0
        self._quoted = False
        self._end: int | None = None

    def end_in(self, text: str, begin: int) -> int | None:
        """The end of the object at ``begin``, white space aside; 0 where none is there, None as long as it is open."""
        self._at = max(self._at, begin)
        while self._end is None and self._at < len(text):
            if self._quoted:
                self._at = INSIDE.match(text, self._at).end()  # type: ignore[union-attr]  # it matches nothing at all
                if text[self._at :] in ("", "\\"):
                    break
                self._quoted = False
                self._step(text[self._at] == '"')
            else:
                self._at = SPACE.match(text, self._at).end()  # type: ignore[union-attr]
                if self._at < len(text):
                    self._outside(text[self._at])
        return self._end

    def _outside(self, char: str) -> None:
        self._quoted = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        begins = self._depth == 1 and char == "{"
        self._step(begins or char in "}]" or (self._depth > 0 and (char in '{[:,"+-._' or char.isalnum())))
        if self._end is None and not self._depth:
            self._end = self._at

    def _step(self, good: bool) -> None:
        """Goes over a character, which an object may have here or not."""
        self._at += 1
        if not good:
            self._end = 0


INSIDE = re.compile(r'(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*')  # of a string
SPACE = re.compile(r"\s*")


def _written(arguments: dict[str, Any]) -> str:
    """As JSON: plain text, but for a half of a character that stands alone. Raises :class:`ValueError` for infinity."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(arguments)
    return text


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)


def _objects(text: str) -> list[str]:
    """The JSON objects of a text of nothing else, with ``;`` or white space between them; else the text."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        try:
            _, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return [text]
        found.append(rest[:end])
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return found
