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
        return ToolCall(found["name"], json.dumps(arguments, ensure_ascii=False))


MARKED, BARE = Writing("arguments", marked=True), Writing("parameters", marked=False)


def writing_of(template: str) -> Writing | None:
    """How a model with this chat template writes calls; None where the template knows of no tools."""
    if "tools" not in template:
        return None
    return MARKED if OPEN in template else BARE


class Scanner:
    """Takes an answer piece by piece: what is text comes out at once, what may be a call is held back."""

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
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> str:
        """Adds a piece; returns the text that is surely none of a call."""
        self._held += text
        return self._marked() if self._writing.marked else self._bare()

    def finish(self) -> str:
        """The rest, once the answer has ended: text, if it was no call after all."""
        held, self._held = self._held, ""
        if self._writing.marked:
            start, mark, inner = held.partition(OPEN)
            call = self._call(inner) if mark else None  # the closing mark may be missing
            if call is not None:
                self._add(call)
                return start.rstrip()
            return held
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

    def _marked(self) -> str:
        out = ""
        while CLOSE in self._held and OPEN in self._held.partition(CLOSE)[0]:
            whole, _, self._held = self._held.partition(CLOSE)
            before, _, inner = whole.rpartition(OPEN)
            call = self._call(inner)
            if call is None:
                out += whole + CLOSE
            else:
                self._add(call)
                out += before.rstrip()
        cut = self._held.find(OPEN)
        if cut < 0:
            cut = len(self._held) - _overlap(self._held, OPEN)
        out, self._held = out + self._held[:cut], self._held[cut:]
        return out

    def _bare(self) -> str:
        if not self._begun and self._held.lstrip()[:1] in ("", "{"):
            return ""
        self._begun = True
        out, self._held = self._held, ""
        return out


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
