"""Calls of functions: found whole or in pieces, and text that only looks like one stays text."""

from __future__ import annotations

import json

import pytest

from llmcore_server.tools import BARE, MARKED, Scanner, ToolCall, Writing, writing_of

WEATHER = ToolCall("weather", '{"city": "Paris"}')
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
LLAMA = '{"name": "weather", "parameters": {"city": "Paris"}}'

CASES: list[tuple[Writing, str, str, list[ToolCall]]] = [
    (MARKED, "No call.", "No call.", []),
    (MARKED, f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
    (MARKED, f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.", [WEATHER]),
    (MARKED, f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [WEATHER, WEATHER]),
    (MARKED, f"<tool_call>\n{CALL}", "", [WEATHER]),
    (MARKED, "<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
    (MARKED, '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    (MARKED, "a < b and <tool", "a < b and <tool", []),
    (MARKED, "<tool_call>", "<tool_call>", []),
    (MARKED, "</tool_call> alone", "</tool_call> alone", []),
    (BARE, LLAMA, "", [WEATHER]),
    (BARE, f"  {LLAMA}\n", "", [WEATHER]),
    (BARE, f"{LLAMA}; {LLAMA}", "", [WEATHER, WEATHER]),
    (BARE, "No call.", "No call.", []),
    (BARE, f"Well: {LLAMA}", f"Well: {LLAMA}", []),
    (BARE, '{"answer": 5}', '{"answer": 5}', []),
    (BARE, '{"name": "weather", "parameters": 5}', '{"name": "weather", "parameters": 5}', []),
    (BARE, '{"name": "no name", "parameters": {}}', '{"name": "no name", "parameters": {}}', []),
    (BARE, "{", "{", []),
    (BARE, "", "", []),
]


@pytest.mark.parametrize(("writing", "said", "text", "calls"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_found(writing: Writing, said: str, text: str, calls: list[ToolCall], size: int) -> None:
    scanner = Scanner(writing)
    out = "".join(scanner.push(said[i : i + size]) for i in range(0, len(said), size)) + scanner.finish()
    assert out.strip() == text.strip()
    assert scanner.calls == calls


def test_text_is_not_held_back_for_long() -> None:
    scanner = Scanner(MARKED)
    assert scanner.push("Paris is <b>big") == "Paris is <b>big"
    assert scanner.push(" <to") == " "
    assert scanner.push("p>") == "<top>"


def test_templates() -> None:
    assert writing_of("{% for m in messages %}{{ m.content }}{% endfor %}") is None
    assert writing_of("{% if tools %}<tool_call>{% endif %}") is MARKED
    assert writing_of('{% if tools %}{"name": ..., "parameters": ...}{% endif %}') is BARE


def test_a_schema_for_each_function() -> None:
    functions = [
        {"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        {"name": "b"},
    ]
    schema = BARE.schema(functions)
    assert [each["properties"]["name"] for each in schema["anyOf"]] == [{"const": "a"}, {"const": "b"}]
    assert BARE.grammar(functions) == ("json_schema", json.dumps(schema))
    kind, text = MARKED.grammar(functions)
    assert kind == "lark"
    assert '"<tool_call>\\n"' in text


def test_only_what_was_offered_is_a_call() -> None:
    for writing, said in ((BARE, LLAMA.replace("weather", "Bob")), (MARKED, f"<tool_call>{CALL}</tool_call>")):
        scanner = Scanner(writing, frozenset({"other"}))
        assert scanner.push(said) + scanner.finish() == said
        assert not scanner.calls
    person = '{"name": "weather", "age": 3}'
    scanner = Scanner(BARE, frozenset({"weather"}))
    assert scanner.push(person) + scanner.finish() == person


def test_one_call_where_one_is_wanted() -> None:
    scanner = Scanner(MARKED, several=False)
    scanner.push(f"<tool_call>{CALL}</tool_call>" * 2)
    assert scanner.calls == [WEATHER]


@pytest.mark.parametrize("inner", ["[" * 100_000, '{"name": "f", "arguments": {"a": NaN}}'])
@pytest.mark.parametrize("writing", [MARKED, BARE])
def test_what_is_no_json(writing: Writing, inner: str) -> None:
    said = f"<tool_call>{inner}</tool_call>" if writing is MARKED else inner
    scanner = Scanner(writing)
    assert scanner.push(said) + scanner.finish() == said
    assert not scanner.calls
