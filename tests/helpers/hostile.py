"""Schemas, expressions and grammars that ask for too much, make no sense, or allow nothing."""

from __future__ import annotations

import json
from typing import Any


def _items(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def _doubling(keyword: str, depth: int) -> dict[str, Any]:
    """A schema that is 2^depth schemas when references are followed."""
    defs: dict[str, Any] = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**defs, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


INTEGER = {"type": "integer"}
SCHEMAS: dict[str, Any] = {
    "nested 100 deep": _items(100),
    "nested 1,500 deep": _items(1500),
    "brackets": "[" * 60_000,
    "objects 10,000 deep": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "no JSON": "{'type': 'object'}",
    "half": '{"type": "obj',
    "NaN": '{"minimum": NaN}',
    "infinite": '{"minimum": 1e999}',
    "a number of 5,000 digits": '{"minimum": ' + "9" * 5000 + "}",
    "a list": [1, 2],
    "a number": 5,
    "null": "null",
    "false": "false",
    "unknown type": {"type": "nonsense"},
    "type is a number": {"type": 5},
    "properties are a list": {"type": "object", "properties": ["a"]},
    "unknown keywords": {"type": "object", "foo": 1},
    "keywords nobody implements": {"type": "object", "propertyNames": {"pattern": "a"}, "dependentSchemas": {}},
    "x-guidance": {"type": "object", "x-guidance": {"whitespace_pattern": " *"}},
    "lone surrogate": '{"const": "\\ud800"}',
    "refers to itself": {"$ref": "#"},
    "two refer to each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "endless": {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"], "additionalProperties": False},
    "somewhere else": {"$ref": "http://localhost/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "nowhere": {"$ref": "#/$defs/missing"},
    "nothing between": {"type": "integer", "minimum": 5, "maximum": 3},
    "string and integer": {"allOf": [{"type": "string"}, INTEGER]},
    "required and forbidden": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "enum of 10,000": {"enum": [i % 1000 for i in range(10_000)]},
    "1,500 properties": {"type": "object", "properties": {f"p{i}": INTEGER for i in range(1500)}},
    "long string": {"type": "string", "minLength": 10**9},
    "long array": {"type": "array", "items": INTEGER, "minItems": 10**9},
    "multiples of a prime": {"type": "integer", "multipleOf": 999_983},
    "multiples of a large prime": {"type": "integer", "multipleOf": 999_999_937},
    "multiples of two": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967)]},
    "multiples of nearly nothing": {"type": "number", "multipleOf": 1e-300},
    "any number": {"type": "number", "minimum": -1e308, "maximum": 1e308},
    "patterns that grow": {"allOf": [{"type": "string", "pattern": f".*{letter}.{{20}}"} for letter in "abcdefgh"]},
    "periods": {"allOf": [{"type": "string", "pattern": f"^(.{{{n}}})*$"} for n in (7, 11, 13, 17, 19, 23, 29)]},
    "wrong pattern": {"type": "string", "pattern": "("},
    "objects alike": {
        "anyOf": [{"type": "object", "properties": {f"k{j}": {"type": "string"} for j in range(10)}}] * 150
    },
    "2^30 alternatives": _doubling("anyOf", 30),
    "2^30 conditions": _doubling("allOf", 30),
}
REGEXES = {
    "a million": "a{1,1000000}",
    "exactly a million millions": "(a{1000000}){1000000}",
    "a million after one": "b?(a{1000000}){1000000}",
    "nested repetitions": "(" * 8 + "a{10}" + "){10}" * 8,
    "exponential": "(a|aa)+b" * 20,
    "stars": "((a*)*)*b",
    "states": "[ab]*a[ab]{25}",
    "letters": r"\p{L}{1,1000000}\w{1,100000}",
    "parentheses": "(" * 20_000 + "a" + ")" * 20_000,
    "open": "(",
    "looks ahead": "(?=a)b",
    "looks back": r"(a)\1",
    "no UTF-8": r"(?-u:\xff)",
    "nothing": r"[^\x00-\x{10FFFF}]",
    "empty": "a{0}",
}
GRAMMARS = {
    "endless": "start: a\na: b\nb: a",
    "ambiguous": 'start: start start | "a"',
    "doubling": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)) + '\na40: "x"',
    "a billion": 'start: ("a" "b"){1000000000}',
    "unknown rule": "start: x",
    "unknown import": "%import x.y\nstart: y",
    "a control token": "start: <[257]>",
    "a token beyond": "start: <[99999]>",
    "periods": "start: A\nA: " + " & ".join(f"/(a{{{n}}})+/" for n in (7, 11, 13, 17, 19, 23, 29)),
    "no grammar": "}{",
}
HOSTILE = [
    *(("json_schema", name, text if isinstance(text, str) else json.dumps(text)) for name, text in SCHEMAS.items()),
    *(("regex", name, text) for name, text in REGEXES.items()),
    *(("lark", name, text) for name, text in GRAMMARS.items()),
]
"""Kind, name and text of each."""
