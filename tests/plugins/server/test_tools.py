"""Calls of functions: found whole or in pieces, and text that only looks like one stays text."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore_server.tools import BARE, MARKED, Scanner, ToolCall, Writing, writing_of

WEATHER = ToolCall("weather", '{"city": "Paris"}')
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
LLAMA = '{"name": "weather", "parameters": {"city": "Paris"}}'
HTML = ToolCall("show", '{"page": "</tool_call> {<tool_call>\\""}')
HTML_CALL = f'<tool_call>{{"name": "show", "arguments": {HTML.arguments}}}</tool_call>'

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
    (MARKED, f"{HTML_CALL} and more", " and more", [HTML]),
    (MARKED, f"{HTML_CALL}</tool_call>", "</tool_call>", [HTML]),
    (MARKED, f"a</tool_call>{HTML_CALL}", "a</tool_call>", [HTML]),
    (MARKED, f"{HTML_CALL} {HTML_CALL}\n{HTML_CALL}", "", [HTML, HTML, HTML]),
    (MARKED, f"one {HTML_CALL} two {HTML_CALL} three", "one two three", [HTML, HTML]),
    (MARKED, f"<tool_call>{HTML_CALL}", "<tool_call>", [HTML]),
    (
        MARKED,
        f'<tool_call>{{"name": "weather"</tool_call>{HTML_CALL}',
        '<tool_call>{"name": "weather"</tool_call>',
        [HTML],
    ),
    (
        MARKED,
        f'<tool_call>{{"name": "wea\nther</tool_call>{HTML_CALL}',
        '<tool_call>{"name": "wea\nther</tool_call>',
        [HTML],
    ),
    (MARKED, f'<tool_call>{{"a": }}</tool_call>{HTML_CALL}', '<tool_call>{"a": }</tool_call>', [HTML]),
    (MARKED, f'<tool_call>{{"a": [1}}]</tool_call>{HTML_CALL}', '<tool_call>{"a": [1}]</tool_call>', [HTML]),
    (MARKED, f"<tool_call>[{CALL}]</tool_call>", f"<tool_call>[{CALL}]</tool_call>", []),
    (MARKED, f"<tool_call>{CALL}{CALL}</tool_call>", f"<tool_call>{CALL}{CALL}</tool_call>", []),
    (MARKED, f"<tool_call>{CALL}, then</tool_call>", f"<tool_call>{CALL}, then</tool_call>", []),
    (MARKED, f"<tool_call>{CALL}</tool_ca", f"<tool_call>{CALL}</tool_ca", []),
    (MARKED, f"<tool_call>{CALL[:-1]}", f"<tool_call>{CALL[:-1]}", []),
    (MARKED, f"<tool_call>{CALL[:-9]}", f"<tool_call>{CALL[:-9]}", []),
    (MARKED, "<tool_call>}</tool_call>", "<tool_call>}</tool_call>", []),
    (MARKED, '<tool_call>"{}"</tool_call>', '<tool_call>"{}"</tool_call>', []),
    (MARKED, "<tool_call><tool_call></tool_call></tool_call>", "<tool_call><tool_call></tool_call></tool_call>", []),
    (
        MARKED,
        '<tool_call>{"name": "f", "arguments": {"a": "\\"}</tool_call>"}}',
        "",
        [ToolCall("f", '{"a": "\\"}</tool_call>"}')],
    ),
    (MARKED, '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}', "", [ToolCall("f", '{"a": "\\ud800"}')]),
    (MARKED, '<tool_call>{"name": "f", "arguments": {"a": "é"}}', "", [ToolCall("f", '{"a": "é"}')]),
    (BARE, '{"name": "f", "parameters": {"a": 1e999}}', '{"name": "f", "parameters": {"a": 1e999}}', []),
    (BARE, f"{LLAMA} and so on", f"{LLAMA} and so on", []),
    (BARE, f"{LLAMA};{{", f"{LLAMA};{{", []),
    (BARE, '{"name": "f", "parameters": {"a": "};{"}}', "", [ToolCall("f", '{"a": "};{"}')]),
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


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    '"',
    "\\",
    "{",
    "}",
    CALL,
    HTML_CALL,
    " ",
    "\n",
    "a",
    '"name": ',
    "[",
    ",",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.sampled_from([MARKED, BARE]), st.integers(1, 5))
def test_pieces_change_nothing_and_nothing_is_lost(fragments: list[str], writing: Writing, size: int) -> None:
    said = "".join(fragments)
    whole, pieces = Scanner(writing), Scanner(writing)
    text = whole.push(said) + whole.finish()
    assert "".join(pieces.push(said[i : i + size]) for i in range(0, len(said), size)) + pieces.finish() == text
    assert pieces.calls == whole.calls
    if not whole.calls:
        assert text == said
    rest = iter(said)
    assert all(char in rest for char in text)  # in order
    called = sum(said.count(call) for call in {CALL, HTML_CALL})
    assert len(whole.calls) <= called


def test_a_long_call_costs_no_more_than_its_length() -> None:
    scanner, said = Scanner(MARKED), '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 200_000
    begun = time.perf_counter()
    for at in range(0, len(said), 4):
        assert scanner.push(said[at : at + 4]) == ""
    assert time.perf_counter() - begun < 10
    assert scanner.finish() == said


def test_text_is_not_held_back_for_long() -> None:
    scanner = Scanner(MARKED)
    assert scanner.push("Paris is <b>big") == "Paris is <b>big"
    assert scanner.push(" <to") == ""
    assert scanner.push("p>") == " <top>"
    assert scanner.push("\n") + scanner.push("x") == "\nx"
    assert scanner.push("<tool_call>not") == "<tool_call>not"
    assert scanner.push('<tool_call>{"name": "a}</tool_call>\n') == '<tool_call>{"name": "a}</tool_call>'


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
