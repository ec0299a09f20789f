"""Malformed GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from helpers.container_bytes import (
    ARRAY,
    BOOL,
    EMBED,
    F32,
    F64,
    I32,
    NORM,
    ROWS,
    STRING,
    U8,
    U32,
    U64,
    Row,
    array,
    entry,
    gguf,
    nested,
    scalar,
)
from helpers.malformed import Malformed, truncations

FILE = "model.gguf"
HUGE = 1 << 50
EMBED_ROW, NORM_ROW = ROWS
KEY = "llama.test"
TOKENS = "tokenizer.ggml.tokens"


def _case(name: str, make: Callable[[], bytes], says: str) -> Malformed:
    return Malformed(f"gguf-{name}", lambda: {FILE: make()}, says)


def _spoilt(array: np.ndarray, value: float) -> bytes:
    values = array.copy()
    values.flat[17] = value
    return values.tobytes()


def _meta(name: str, value: bytes, says: str, key: str = KEY) -> Malformed:
    return _case(f"metadata-{name}", lambda: gguf({key: value}), says)


def header_cases() -> Iterator[Malformed]:
    """Magic, version, counts."""
    yield _case("empty", lambda: b"", "empty")
    yield _case("magic", lambda: gguf(magic=b"GGML"), "not a GGUF file")
    yield _case("is-a-zip", lambda: b"PK\x03\x04" + bytes(100), "not a GGUF file")
    yield _case("version-0", lambda: gguf(version=struct.pack("<I", 0)), "version 0")
    yield _case("version-1", lambda: gguf(version=struct.pack("<I", 1)), "version 1")
    yield _case("version-4", lambda: gguf(version=struct.pack("<I", 4)), "version 4")
    yield _case("big-endian", lambda: gguf(version=struct.pack(">I", 3)), "big-endian")
    for name, count in (("2^50", HUGE), ("2^64-1", (1 << 64) - 1), ("more-than-bytes", 10_000)):
        yield _case(f"key-count-{name}", lambda count=count: gguf(key_count=count), f"{count} metadata keys")
        yield _case(f"tensor-count-{name}", lambda count=count: gguf(row_count=count), f"{count} tensors")
    yield _case("key-count-one-too-many", lambda: gguf(key_count=14), "longer than 1024")
    yield _case("tensor-count-one-too-many", lambda: gguf(row_count=3), "tensor")
    yield _case("key-count-beyond-limit", lambda: gguf(key_count=70_000, data=bytes(1 << 20)), "more than 65536")
    yield _case("tensor-count-beyond-limit", lambda: gguf(row_count=70_000, data=bytes(2 << 20)), "more than 65536")


def metadata_cases() -> Iterator[Malformed]:
    """Keys and values."""
    twice = entry("llama.block_count", scalar(U32, 1))
    yield _case("key-twice", lambda: gguf(raw_metadata=twice, raw_count=1), "'llama.block_count': appears twice")
    long = struct.pack("<Q", HUGE) + b"x"
    yield _case("key-length-2^50", lambda: gguf(raw_metadata=long, raw_count=1), "longer than 1024")
    yield _case("key-too-long", lambda: gguf({"k" * 1025: scalar(U8, 1)}), "longer than 1024")
    utf8 = entry(b"llama.\xff", scalar(U8, 1))
    yield _case("key-not-utf8", lambda: gguf(raw_metadata=utf8, raw_count=1), "not UTF-8")
    for kind in (13, 99, 1 << 31, (1 << 32) - 1):
        yield _meta(f"type-{kind}", struct.pack("<IQ", kind, 0), f"{KEY!r}: there is no metadata type {kind}")
    yield _meta("bool-2", struct.pack("<IB", BOOL, 2), f"{KEY!r}: a boolean is 2")
    yield _meta("bool-array", struct.pack("<IIQ3B", ARRAY, BOOL, 3, 0, 1, 7), "a boolean")
    yield _meta("string-2^50", struct.pack("<IQ", STRING, HUGE), f"{KEY!r}: a string of")
    yield _meta("string-past-end", struct.pack("<IQ", STRING, 1 << 16), f"{KEY!r}: a string of")
    yield _meta("string-not-utf8", scalar(STRING, b"ab\xc3"), f"{KEY!r}: a string is not UTF-8")
    for kind in (U8, U32, F32, U64, F64, STRING):
        for count in (HUGE, (1 << 64) - 1, 1 << 14):
            yield _meta(f"array-{kind}-of-{count}", array(kind, [], count), f"array of {count}")
    yield _meta("array-type-13", struct.pack("<IIQ", ARRAY, 13, 1), "there is no metadata type 13")
    yield _meta("array-of-arrays-2^50", struct.pack("<IIQ", ARRAY, ARRAY, HUGE), "runs past the end")
    yield _meta("array-nested-4", nested(4, array(U8, [1])), "nested more than 3 deep")
    yield _meta("array-nested-1000", nested(1000, array(U8, [1])), "nested more than 3 deep")
    yield _meta("array-string-length-2^50", struct.pack("<IIQQ", ARRAY, STRING, 1, HUGE), "string 0 of 1 runs past")
    yield _meta("array-string-length-2^64-1", array(STRING, ["a"], 1)[:-9] + b"\xff" * 8, "string 0 of 1 runs past")
    yield _meta("array-string-not-utf8", array(STRING, ["a", b"\xff"]), "not UTF-8")
    for name, value in (
        ("0", scalar(U32, 0)),
        ("4", scalar(U32, 4)),
        ("33", scalar(U32, 33)),
        ("2^31", scalar(U32, 1 << 31)),
        ("string", scalar(STRING, "32")),
        ("bool", scalar(BOOL, True)),
    ):
        yield _meta(f"alignment-{name}", value, "'general.alignment': is", "general.alignment")


def tensor_cases() -> Iterator[Malformed]:
    """The tensor table and the data."""

    def rows(name: str, says: str, *rows: Row) -> Malformed:
        return _case(f"tensor-{name}", lambda: gguf(rows=rows), says)

    name = EMBED_ROW.name
    yield rows("twice", "appears twice", EMBED_ROW, Row(name, (32,), offset=512))
    yield rows("twice-by-canonical-name", "stored twice", EMBED_ROW, Row("model.embed_tokens.weight", (32,), 0, 512))
    yield rows("name-not-utf8", "not UTF-8", EMBED_ROW, Row(b"\xfe.weight", (32,), 0, 512))
    for dimensions in (0, 5, 1 << 31):
        yield rows(
            f"dimensions-{dimensions}", f"has {dimensions} dim", Row(name, (32, 4), dimensions=dimensions), NORM_ROW
        )
    yield rows("zero-size", "has a zero", Row(name, (32, 0)), NORM_ROW)
    for size in (HUGE, (1 << 64) - 32, 5):
        yield rows(f"rows-{size}", "", Row(name, (32, size)), NORM_ROW)
    yield rows("size-overflows-64-bits", "the file ends at", Row(name, (1 << 32, 1 << 32)), NORM_ROW)
    for kind in (4, 5, 31, 36, 99, (1 << 32) - 1):
        yield rows(f"type-{kind}", f"there is no tensor type {kind}", Row(name, (32, 4), kind), NORM_ROW)
    yield rows("half-a-block", "not whole blocks of 256", Row(name, (32, 4), 12), NORM_ROW)
    yield rows("misaligned", "not a multiple of the alignment", EMBED_ROW, Row("output_norm.weight", (32,), 0, 516))
    for offset in (EMBED.nbytes + 32, 1 << 50, (1 << 64) - 32):
        yield rows(f"offset-{offset}", "the file ends at", EMBED_ROW, Row("output_norm.weight", (32,), 0, offset))
    yield rows("overlap", "overlaps tensor", EMBED_ROW, Row("output_norm.weight", (32,), 0, 480))
    yield rows("same-bytes", "overlaps tensor", EMBED_ROW, Row("output_norm.weight", (32,), 0, 0))
    yield rows("missing", "missing", EMBED_ROW)
    yield rows("none", "missing")
    yield rows("renamed", "missing", EMBED_ROW, Row("norm.weight", (32,), 0, 512))
    yield rows(
        "surplus", "no place for it", EMBED_ROW, Row("output_norm.weight", (16,), 0, 512), Row("x", (16,), 0, 576)
    )
    yield rows("transposed", "shape is", Row(name, (4, 32)), NORM_ROW)
    yield rows("wrong-shape", "shape is", EMBED_ROW, Row("output_norm.weight", (16,), 0, 512))
    yield rows("integers", "stored as I32", EMBED_ROW, Row("output_norm.weight", (32,), 26, 512))
    yield rows("iq4", "stored as IQ4_NL", Row(name, (32, 4), 20), NORM_ROW)
    for value in (float("nan"), float("inf"), float("-inf")):
        yield _case(
            f"{value}", lambda value=value: gguf(data=_spoilt(EMBED, value) + NORM.tobytes()), "[0, 17] is not finite"
        )
    yield _case("nan-in-norm", lambda: gguf(data=EMBED.tobytes() + _spoilt(NORM, float("nan"))), "[17] is not finite")
    half = Row(name, (32, 4), 1), Row("output_norm.weight", (32,), offset=256)
    half_data = EMBED.astype(np.float16).tobytes()[:-2] + b"\x00\xfc" + NORM.tobytes()
    yield _case("f16-infinity", lambda: gguf(rows=half, data=half_data), "[3, 31] is not finite")
    blocks = Row(name, (32, 4), 3), Row("output_norm.weight", (32,), offset=96)
    block_data = bytes(42) + b"\x00\x7e" + bytes(52) + NORM.tobytes()
    yield _case("q4_1-minimum-nan", lambda: gguf(rows=blocks, data=block_data), "scale of the block at element [2, 0]")


def config_cases() -> Iterator[Malformed]:
    """Metadata that is well formed but that we refuse, by its key."""
    for key in ("block_count", "context_length", "embedding_length", "attention.head_count"):
        full = f"llama.{key}"
        yield _case(f"config-without-{key}", lambda full=full: gguf({full: None}), f"{full!r} is missing")
        yield _meta(f"config-{key}-zero", scalar(U32, 0), f"{full!r} is 0", full)
        yield _meta(f"config-{key}-text", scalar(STRING, "8"), f"{full!r} is '8', not", full)
    yield _meta("negative-width", scalar(I32, -8), "is -8", "llama.embedding_length")
    yield _meta("heads-do-not-divide", scalar(U32, 5), "5 heads do not divide 32", "llama.attention.head_count")
    for key, value, says in (
        ("expert_count", scalar(U32, 8), "llama.expert_count = 8"),
        ("attention.sliding_window", scalar(U32, 128), "llama.attention.sliding_window = 128"),
        ("attention.causal", scalar(BOOL, False), "llama.attention.causal = False"),
        ("something.new", scalar(U32, 1), "llama.something.new = 1"),
        ("logit_scale", scalar(F32, 0.5), "llama.logit_scale = 0.5"),
        ("rope.dimension_count", scalar(U32, 4), "llama.rope.dimension_count = 4 differs"),
        ("attention.value_length", scalar(U32, 4), "llama.attention.value_length = 4 differs"),
        ("feed_forward_length", array(U32, [48, 64]), "differs from layer to layer"),
        ("rope.scaling.type", scalar(STRING, "longrope"), "'longrope' is not implemented"),
        ("rope.scaling.type", scalar(STRING, "yarn"), "rope.scaling.factor' is missing"),
        ("rope.freq_base", scalar(F32, float("nan")), "rope.freq_base' is nan"),
        ("attention.layer_norm_rms_epsilon", scalar(F32, -1.0), "is -1.0"),
    ):
        yield _meta(f"refused-{key}-{says[-8:]}", value, says, f"llama.{key}")
    yield _meta("architecture", scalar(STRING, "llamma"), "'llamma' is not implemented", "general.architecture")
    yield _meta("architecture-number", scalar(U32, 1), "is missing or not a string", "general.architecture")
    yield _case("no-architecture", lambda: gguf({"general.architecture": None}), "is missing or not a string")
    yield _meta("split", scalar(U32, 3), "split over 3", "split.count")
    yield _meta("adapter", scalar(STRING, "adapter"), "'adapter'", "general.type")
    old = {"general.quantization_version": scalar(U32, 1)}
    yield _case("old-blocks", lambda: gguf(old, [Row("token_embd.weight", (32, 4), 2)]), "quantization version 1")
    for factors, says in (([1.0, 1.0, 0.0, 1.0], "not positive"), ([1.0] * 3, "[4] F32 is wanted")):
        rows = (*ROWS, Row("rope_freqs.weight", (len(factors),), offset=640))
        data = EMBED.tobytes() + NORM.tobytes() + np.array(factors, np.float32).tobytes()
        yield _case(f"rope-factors-{len(factors)}", lambda rows=rows, data=data: gguf(rows=rows, data=data), says)


def tokenizer_cases() -> Iterator[Malformed]:
    """Tokenizer metadata that does not fit together."""
    prefix = "tokenizer.ggml."
    for index, (key, value, says) in enumerate(
        (
            ("tokens", array(U32, [1, 2]), "not a list of strings"),
            ("tokens", scalar(STRING, "abc"), "not a list of strings"),
            ("tokens", array(STRING, []), "not a list of strings"),
            ("scores", array(F32, [0.0] * 3), "3 entries for 4 tokens"),
            ("scores", array(F32, [0.0, 1.0, float("nan"), 0.0]), "not finite at token 2"),
            ("scores", array(I32, [0] * 4), "not an array of numbers"),
            ("token_type", array(I32, [1] * 5), "5 entries for 4 tokens"),
            ("token_type", array(STRING, ["1"] * 4), "not an array of numbers"),
            ("merges", array(I32, [1]), "not a list of strings"),
            ("bos_token_id", scalar(U32, 4), "not a token id below 4"),
            ("eos_token_id", scalar(I32, -1), "not a token id below 4"),
            ("padding_token_id", scalar(STRING, "0"), "not a token id below 4"),
            ("add_bos_token", scalar(U32, 1), "not a bool"),
            ("model", scalar(U32, 1), "not a str"),
        )
    ):
        yield _meta(f"{key}-{index}", value, says, prefix + key)
    yield _meta("template", scalar(U32, 1), "'tokenizer.chat_template' is a int", "tokenizer.chat_template")


def cases() -> Iterator[Malformed]:
    """All of them."""
    yield from header_cases()
    yield from metadata_cases()
    yield from tensor_cases()
    yield from config_cases()
    yield from tokenizer_cases()
    yield from truncations("gguf", gguf(), lambda content: {FILE: content})
