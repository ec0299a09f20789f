"""Malformed safetensors files, indexes of shards, and the JSON files beside them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from helpers.container_bytes import CONFIG, EMBED, HEADER, NORM, safetensors
from helpers.malformed import Malformed, truncations

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBED_NAME, NORM_NAME = HEADER
HUGE = 1 << 50
ENTRY = '{"dtype":"F32","shape":[32],"data_offsets":[512,640]}'


def _model(content: bytes, **others: bytes) -> dict[str, bytes]:
    return {FILE: content, "config.json": CONFIG, **others}


def _case(name: str, make: Callable[[], bytes], says: str) -> Malformed:
    return Malformed(f"safetensors-{name}", lambda: _model(make()), says)


def _text(name: str, header: str | bytes, says: str) -> Malformed:
    return _case(f"header-{name}", lambda: safetensors(header), says)


def _changed(tensor: str, **fields: Any) -> dict[str, Any]:
    header: dict[str, Any] = copy.deepcopy(HEADER)
    header[tensor].update(fields)
    return header


def header_cases() -> Iterator[Malformed]:
    """The length and the JSON."""
    yield _case("empty", lambda: b"", "empty")
    yield _case("7-bytes", lambda: bytes(7), "not even a header length")
    for length in (HUGE, (1 << 64) - 1, 10_000):
        yield _case(f"length-{length}", lambda length=length: safetensors(length=length), "runs past the end")
    long = b"{" + b" " * (17 << 20)
    yield _case("length-over-limit", lambda: safetensors(long), "is longer than")
    yield _case("length-0", lambda: safetensors("", data=b""), "does not start with '{'")
    yield _case("length-short", lambda: safetensors(length=40), "")
    yield _case("is-a-pickle", lambda: b"\x80\x04\x95" + bytes(100), "")
    good = json.dumps(HEADER)
    yield _text("space-first", " " + good, "does not start with '{'")
    yield _text("list", "[]", "does not start with '{'")
    yield _text("not-utf8", b'{"\xff": 1}', "not UTF-8")
    yield _text("no-end", good[:-1], "where ','")
    yield _text("something-after", good + "x", "something follows")
    yield _text("second-object", good + "{}", "something follows")
    yield _text("nul-padding", good + "\0\0", "something follows")
    yield _text("no-colon", '{"a" 1}', "where ':' belongs")
    yield _text("no-comma", good[:-1] + f'"b":{ENTRY}}}', "where ',' belongs")
    yield _text("trailing-comma", good[:-1] + ",}", "lacks a string")
    yield _text("long-name", f'{{"{"x" * 1025}":{ENTRY}}}', "a name is longer")
    yield _text("key-not-string", "{1: 2}", "lacks a string")
    yield _text("open-key", '{"abc', "damaged")
    yield _text("control-character", '{"a\nb": 1}', "damaged")
    yield _text("bad-escape", r'{"\q": 1}', "damaged")
    yield _text("tensor-twice", good[:-1] + f',"{NORM_NAME}":{ENTRY}}}', "appears twice")
    yield _text("tensor-twice-by-escape", good[:-1] + f',"\\u006d{NORM_NAME[1:]}":{ENTRY}}}', "appears twice")
    yield _text("deep-lists", '{"a":' + "[" * 100_000, "does not end within")
    yield _text("deep-lists-in-entry", '{"a":{"dtype":' + "[" * 3000 + "]" * 900 + "}}", "not JSON")
    yield _text("deep-objects", '{"a":' * 50_000 + "}" * 50_000, "")
    yield _text("long-entry", '{"a":{"shape":[' + "1," * 5000 + "1]}}", "does not end within")
    yield _text("long-digits", '{"a":{"shape":' + "9" * 4000 + "}}", "")
    for value in ("1", "null", '"x"', "[]", "true"):
        yield _text(f"entry-{value}", f'{{"a":{value}}}', "")
    meta = '{"__metadata__":'
    yield _text("metadata-twice", f'{meta}{{}},"__metadata__":{{}}}}', "__metadata__ appears twice")
    yield _text("metadata-key-twice", f'{meta}{{"a":"1","a":"2"}}}}', "has key 'a' twice")
    yield _text("metadata-number", f'{meta}{{"a":1}}}}', "lacks a string")
    yield _text("metadata-nested", f'{meta}{{"a":{{"b":"c"}}}}}}', "lacks a string")
    yield _text("metadata-list", f"{meta}[]}}", "where '{' belongs")
    yield _text("too-many", "{" + ",".join(f'"{i}":{ENTRY}' for i in range(65_537)) + "}", "")


def entry_cases() -> Iterator[Malformed]:
    """Entries and the data that they point at."""

    def norm(name: str, says: str, **fields: Any) -> Malformed:
        return _case(f"entry-{name}", lambda: safetensors(_changed(NORM_NAME, **fields)), says)

    for dtype in ("F7", "f32", "", None, 3, ["F32"], {}, "F4"):
        yield norm(f"dtype-{dtype}", "dtype" if dtype != {} else "", dtype=dtype)
    for shape in (None, 32, "text", [-32], [32.0], [True], ["32"], [[32]], [1 << 63], [1] * 9, {}):
        yield norm(f"shape-{shape}", "shape" if shape != {} else "", shape=shape)
    for shape in ([31], [], [0], [HUGE], [1 << 61, 1 << 61]):
        yield norm(f"size-{shape}", "bytes, data_offsets span", shape=shape)
    for offsets in (None, [512], [512, 640, 640], [512.0, 640], [-1, 127], ["a", "b"], [512, True], 5):
        yield norm(f"offsets-{offsets}", "are not two offsets", data_offsets=offsets)
    for offsets in ([640, 512], [512, 641], [HUGE, HUGE + 128], [1 << 61, (1 << 61) + 128]):
        yield norm(f"offsets-{offsets}", "lie outside", data_offsets=offsets)
    yield norm("overlap", "overlaps", data_offsets=[480, 608])
    yield norm("same-bytes", "overlaps", data_offsets=[0, 128])
    yield norm("wrong-width", "bytes, data_offsets span", dtype="F16")
    yield norm("extra-key", "exactly dtype", stride=1)
    for key in ("dtype", "shape", "data_offsets"):
        header: dict[str, Any] = copy.deepcopy(HEADER)
        del header[NORM_NAME][key]
        yield _case(f"entry-without-{key}", lambda header=header: safetensors(header), "exactly dtype")
    entry = '{"dtype":"F32","dtype":"F32","shape":[32],"data_offsets":[512,640]}'
    yield _text("entry-key-twice", f'{{"a":{entry}}}', "'dtype' appears twice")
    nan = '{"dtype":"F32","shape":[NaN],"data_offsets":[512,640]}'
    yield _text("entry-nan", f'{{"a":{nan}}}', "NaN is not JSON")
    gap = {EMBED_NAME: HEADER[EMBED_NAME], NORM_NAME: {**HEADER[NORM_NAME], "data_offsets": [516, 644]}}
    yield _case("gap", lambda: safetensors(gap, data=bytes(644)), "leaves a gap")
    yield _case("gap-at-start", lambda: safetensors({NORM_NAME: HEADER[NORM_NAME]}), "leaves a gap")
    yield _case("data-left-over", lambda: safetensors(data=bytes(641)), "1 bytes after")
    yield _case("no-tensors", lambda: safetensors({}, data=b""), "missing")
    yield _case("missing", lambda: safetensors({EMBED_NAME: HEADER[EMBED_NAME]}, data=EMBED.tobytes()), "missing")
    surplus = {**HEADER, "x": {"dtype": "U8", "shape": [4], "data_offsets": [640, 644]}}
    yield _case("surplus", lambda: safetensors(surplus, data=bytes(644)), "no place for it")
    yield norm("wrong-shape", "shape is [4, 8]", shape=[4, 8])
    for dtype, width in (("I32", 4), ("I8", 1), ("F8_E4M3", 1), ("F64", 8), ("BOOL", 1), ("U16", 2)):
        yield _case(f"stored-as-{dtype}", lambda d=dtype, w=width: _stored_as(d, 128 * w), f"stored as {dtype}")
    for value in (float("nan"), float("inf"), float("-inf")):
        yield _case(f"{value}", lambda value=value: safetensors(data=_spoilt(value)), "[2, 6] is not finite")
    bf16 = {**HEADER[EMBED_NAME], "dtype": "BF16", "data_offsets": [0, 256]}
    both = {EMBED_NAME: bf16, NORM_NAME: {**HEADER[NORM_NAME], "data_offsets": [256, 384]}}
    data = bytes(20) + b"\x80\xff" + bytes(234) + NORM.tobytes()
    yield _case("bf16-infinity", lambda: safetensors(both, data=data), "[0, 10] is not finite")


def _stored_as(dtype: str, size: int) -> bytes:
    embed = {"dtype": dtype, "shape": [4, 32], "data_offsets": [0, size]}
    norm = {"dtype": "F32", "shape": [32], "data_offsets": [size, size + NORM.nbytes]}
    return safetensors({EMBED_NAME: embed, NORM_NAME: norm}, data=bytes(size) + NORM.tobytes())


def _spoilt(value: float) -> bytes:
    embed = EMBED.copy()
    embed[2, 6] = value
    return embed.tobytes() + NORM.tobytes()


def index_cases() -> Iterator[Malformed]:
    """Sharded models."""
    one = safetensors({EMBED_NAME: HEADER[EMBED_NAME]}, data=EMBED.tobytes())
    two = safetensors({NORM_NAME: {**HEADER[NORM_NAME], "data_offsets": [0, 128]}}, data=NORM.tobytes())
    shards = {"one.safetensors": one, "two.safetensors": two, "config.json": CONFIG}
    right = {EMBED_NAME: "one.safetensors", NORM_NAME: "two.safetensors"}

    def index(name: str, weight_map: object, says: str, culprit: str = INDEX, **change: bytes) -> Malformed:
        content = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        files = {INDEX: content, **shards, **{f"{k}.safetensors": v for k, v in change.items()}}
        return Malformed(f"index-{name}", lambda: files, says, culprit)

    for path in (
        "../one.safetensors",
        "/etc/one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        "C:one.safetensors",
        "one.safetensors/../../x.safetensors",
        "one\0.safetensors",
        "config.json",
        "one.bin",
        "..",
        "",
        5,
        None,
        ["one.safetensors"],
    ):
        yield index(f"path-{path!r}", {**right, EMBED_NAME: path}, "not a .safetensors file beside the index")
    for weight_map in (None, [], {}, "one.safetensors", 3):
        yield index(f"weight-map-{weight_map}", weight_map, "has no 'weight_map'")
    yield index("missing-shard", {**right, EMBED_NAME: "three.safetensors"}, "shard is missing", "three.safetensors")
    swapped = {EMBED_NAME: "two.safetensors", NORM_NAME: "one.safetensors"}
    yield index("swapped", swapped, "where the index puts it")
    yield index("absent-tensor", {**right, "ghost": "one.safetensors"}, "is not in one.safetensors")
    yield index("unlisted-tensor", {EMBED_NAME: "one.safetensors"}, "missing", ".")
    extra = safetensors()
    yield index("in-both-shards", right, "does not put it here", "one.safetensors", one=extra)
    yield index("damaged-shard", right, "runs past the end", "two.safetensors", two=two[:20])
    yield index("empty-shard", right, "empty", "two.safetensors", two=b"")
    good = json.dumps({"weight_map": right})
    for name, content, says in (
        ("cut", good[:-5], "not JSON"),
        ("key-twice", good[:-1] + ',"weight_map":{}}', "appears twice"),
        ("tensor-twice", '{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}', "appears twice"),
        ("list", "[1]", "not an object"),
        ("deep", "[" * 200_000, "nested too deep"),
        ("many-values", "[" + "0," * 600_000 + "0]", "values"),
        ("many-lists", "[" * 300_000 + "]" * 300_000, ""),
    ):
        yield Malformed(f"index-json-{name}", lambda content=content: {INDEX: content.encode(), **shards}, says)


def beside_cases() -> Iterator[Malformed]:
    """config.json, the tokenizer's config, chat templates."""
    good = safetensors()
    for name, content, says in (
        ("empty", b"", "not JSON"),
        ("cut", CONFIG[:-3], "not JSON"),
        ("list", b"[]", "not an object"),
        ("text", b'"llama"', "not an object"),
        ("not-utf8", b'{"a":"\xff"}', "not UTF-8"),
        ("nan", b'{"rope_theta":NaN}', "NaN"),
        ("infinity", b'{"rope_theta":-Infinity}', "Infinity"),
        ("key-twice", b'{"hidden_size":1,"hidden_size":2}', "'hidden_size' appears twice"),
        ("nested-key-twice", b'{"rope_scaling":{"factor":1,"factor":2}}', "'factor' appears twice"),
        ("deep", b'{"a":' * 100_000, "nested too deep"),
        ("long-number", b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        ("too-long", b'{"a":"' + b"x" * (17 << 20) + b'"}', "longer than"),
        ("many-values", b'{"a":[' + b"{}," * 400_000 + b"{}]}", "values"),
        ("python", b"{'model_type': 'llama'}", "not JSON"),
        ("trailing", CONFIG + b"}", "not JSON"),
    ):
        files = {FILE: good, "config.json": content}
        yield Malformed(f"config-{name}", lambda files=files: files, says, "config.json")
    for file, name, content, says in (
        ("generation_config.json", "cut", b'{"a":', "not JSON"),
        ("tokenizer_config.json", "cut", b'{"a":', "not JSON"),
        ("tokenizer_config.json", "template-number", b'{"chat_template":5}', "neither a template"),
        ("tokenizer_config.json", "templates-of-text", b'{"chat_template":["a"]}', "neither a template"),
        ("tokenizer_config.json", "named-number", b'{"chat_template":[{"name":"default","template":1}]}', "neither"),
        ("special_tokens_map.json", "list", b"[]", "not an object"),
        ("chat_template.jinja", "not-utf8", b"\xff\xfe", "not UTF-8"),
        ("chat_template.jinja", "too-long", b"x" * ((1 << 20) + 1), "longer than"),
        ("chat_template.json", "number", b'{"chat_template":5}', "neither a template"),
        ("chat_template.json", "cut", b'{"chat', "not JSON"),
    ):
        files = {FILE: good, "config.json": CONFIG, file: content}
        yield Malformed(f"{file}-{name}", lambda files=files: files, says, file)


def kind_cases() -> Iterator[Malformed]:
    """Things that are no checkpoint of ours."""
    pickle = b"\x80\x04\x95" + np.zeros(8).tobytes()
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"):
        yield Malformed(f"pickled-{name}", lambda name=name: {name: pickle}, "never unpickle")
        files = {name: pickle, "config.json": CONFIG}
        yield Malformed(f"pickled-in-directory-{name}", lambda files=files: files, "never unpickle", name)
    yield Malformed("unknown-file", lambda: {"model.onnx": pickle}, "no checkpoint format")
    yield Malformed("no-weights", lambda: {"config.json": CONFIG, "a.txt": b"a"}, "no checkpoint format", ".")
    adapter = {"adapter_model.safetensors": safetensors(), "config.json": CONFIG}
    yield Malformed("adapter", lambda: adapter, "adapter, not a model", ".")
    several = {"a.safetensors": safetensors(), "b.safetensors": safetensors(), "config.json": CONFIG}
    yield Malformed("several", lambda: several, "several files", ".")
    yield Malformed("no-config", lambda: {FILE: safetensors()}, "config.json is missing", ".")


def cases() -> Iterator[Malformed]:
    """All of them."""
    yield from header_cases()
    yield from entry_cases()
    yield from index_cases()
    yield from beside_cases()
    yield from kind_cases()
    yield from truncations("safetensors", safetensors(), _model)
