"""Random cases of every op: sizes at the edges of vectors, tiles and chunks, and a few far beyond them.

A case is a function of the generator alone, so a seed brings it back. Ops that have no maker here get one of their own
cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from llmcore.ops import Case, OpSpec
from llmcore.ops.attention import slots_of
from llmcore.ops.cases import Ragged, indices, normed
from llmcore.ops.sampling_cases import random_probs
from llmcore.testing.operands import fits
from llmcore.weights.formats import tensor_format

Rng = np.random.Generator

TOKENS = (0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65)
MANY_TOKENS = (127, 128, 129, 130, 193)
SMALL = 70  # of what is drawn evenly from 1 on
FAR = 0.02  # share of cases with a size that is far larger


def random_case(spec: OpSpec, formats: Mapping[str, str], rng: Rng) -> Case:
    """A case of ``spec`` that weights of ``formats`` fit."""
    block = max((tensor_format(name).block for name in formats.values()), default=1)
    make = MAKERS.get(spec.name)
    if make is not None:
        return make(rng, block)
    own = [case for case in (spec.cases() if spec.cases else ()) if fits(spec, case, formats)]
    return own[int(rng.integers(len(own)))]


def _one(rng: Rng, values: tuple[Any, ...]) -> Any:
    return values[int(rng.integers(len(values)))]


def _tokens(rng: Rng) -> int:
    return int(_one(rng, MANY_TOKENS if rng.random() < FAR else TOKENS))


def _size(rng: Rng, far: int = 1100) -> int:
    """Mostly small, of any remainder; now and then up to ``far``."""
    return int(rng.integers(1, far if rng.random() < FAR else SMALL))


def _width(rng: Rng, block: int) -> int:
    """The length of a weight's row: whole blocks."""
    if block == 1:
        return _size(rng)
    most = max(2, 288 // block)
    return block * int(rng.integers(1, 1 + (8 * most if rng.random() < FAR else most)))


def _rows(names: str, rng: Rng, _block: int) -> Case:
    return Case({names[0]: _tokens(rng), names[1]: _size(rng)})


def _linear(names: str, bias: bool, rng: Rng, block: int) -> Case:
    tokens, width, rows = _tokens(rng), _width(rng, block), _size(rng)
    kind = rng.random()
    if kind < 0.01:  # several chunks of rows, of a few tokens
        tokens, width, rows = int(rng.integers(1, 6)), 768, int(rng.integers(300, 700))
    elif kind < 0.015:  # rows as long as there are
        tokens, width, rows = int(rng.integers(1, 4)), int(_one(rng, (16384, 90112))), int(rng.integers(1, 20))
    present = ("bias",) if bias and rng.random() < 0.5 else ()
    return Case(dict(zip(names, (tokens, width, rows), strict=True)), present=present)


def _embedding(rng: Rng, block: int) -> Case:
    dims = {"T": _tokens(rng), "V": _size(rng), "D": _width(rng, block)}
    return Case(dims, inputs=indices("ids", "T", below="V"))


def _gather(rng: Rng, _block: int) -> Case:
    tokens = _tokens(rng)
    dims = {"T": tokens, "D": _size(rng), "R": _tokens(rng) if tokens else 0}
    return Case(dims, inputs=indices("rows", "R", below="T"))


def _norm(rng: Rng, _block: int) -> Case:
    size = _size(rng)
    groups = 1 if rng.random() < 0.5 else int(rng.integers(1, 10))
    return Case({"M": _tokens(rng), "D": size * groups, "C": size}, {"eps": float(_one(rng, (1e-6, 1e-5)))})


def _rope(rng: Rng, _block: int) -> Case:
    pairs = int(rng.integers(1, SMALL))
    head_dim = 2 * pairs + int(_one(rng, (0, 0, 0, 1, 2, 16)))
    heads = int(rng.integers(1, 10))
    dims = {"T": _tokens(rng), "D": heads * head_dim, "P": _size(rng), "F": pairs}
    attrs = {"head_dim": head_dim, "interleaved": bool(rng.random() < 0.5)}
    return Case(dims, attrs, inputs=indices("positions", "T", below="P"))


def _vocabulary(rng: Rng) -> int:
    return _size(rng, 5000) if rng.random() < 0.5 else int(rng.integers(200, 600))


def _argmax(rng: Rng, _block: int) -> Case:
    return Case({"R": _tokens(rng), "V": _vocabulary(rng)})


def _largest(rng: Rng, _block: int) -> Case:
    vocab = _vocabulary(rng)
    count = int(rng.integers(1, min(vocab, 100) + 1))
    return Case({"R": _tokens(rng), "V": vocab, "N": count}, {"n": count})


def _softmax(rng: Rng, _block: int) -> Case:
    def inputs(dims: Mapping[str, int], rng: Rng) -> dict[str, Any]:
        return {"temperature": rng.uniform(0.2, 2, dims["R"]).astype(np.float32)}

    return Case({"R": _tokens(rng), "V": _vocabulary(rng)}, inputs=inputs)


def _filter(name: str, least: float, most: float, rng: Rng, _block: int) -> Case:
    def inputs(dims: Mapping[str, int], rng: Rng) -> dict[str, Any]:
        limits = rng.uniform(least, most, dims["R"])
        limit = limits.astype(np.int32 if name == "k" else np.float32)
        return {"probs": random_probs(dims, rng), name: limit}

    return Case({"R": _tokens(rng), "V": _vocabulary(rng)}, inputs=inputs)


def _heads(rng: Rng) -> tuple[int, int, int]:
    """Key heads, query heads to each, and their size."""
    kv_heads, group = int(_one(rng, (1, 1, 2, 3, 4))), int(_one(rng, (1, 1, 2, 3, 4, 7, 8)))
    return kv_heads, group, int(_one(rng, (8, 16, 16, 20, 24, 32, 33, 64, 64, 80, 128)))


PAGE_SIZES = (1, 2, 3, 8, 16, 16, 17, 24, 32, 64)


def _kv_write(rng: Rng, _block: int) -> Case:
    kv_heads, _, head_dim = _heads(rng)
    page_size = int(_one(rng, PAGE_SIZES))
    attrs = {"head_dim": head_dim, "page_size": page_size}
    return Case({"T": _tokens(rng), "G": kv_heads * head_dim}, attrs, inputs=partial(slots_of, page_size=page_size))


def _projections(rng: Rng, block: int) -> Case:
    kv_heads, group, head_dim = _heads(rng)
    head_dim += head_dim % 2  # pairs
    pairs = head_dim // 2 - (int(rng.integers(head_dim // 2)) if rng.random() < 0.2 else 0)
    page_size = int(_one(rng, PAGE_SIZES))
    tokens, width, positions = _tokens(rng), _width(rng, block), _size(rng)
    sizes = {"T": tokens, "K": width, "D": kv_heads * group * head_dim, "G": kv_heads * head_dim}

    def inputs(dims: Mapping[str, int], rng: Rng) -> dict[str, Any]:
        return indices("positions", "T", below="P")(dims, rng) | slots_of(dims, rng, page_size=page_size)

    return Case(
        sizes | {"C": head_dim, "P": positions, "F": pairs},
        {"head_dim": head_dim, "page_size": page_size, "interleaved": bool(rng.random() < 0.5), "eps": 1e-6},
        _one(rng, ((), (), ("bq", "bk", "bv"), ("nq", "nk"))),
        inputs,
    )


def _normed(make: Callable[[Rng, int], Case], rng: Rng, block: int) -> Case:
    """A case of ``make`` whose tokens are normed first, whole or in groups."""
    case = make(rng, block)
    groups = _one(rng, tuple(n for n in (1, 1, 1, 2, 3, 4) if case.dims["K"] % n == 0))
    return normed(case, "K", groups, float(_one(rng, (1e-6, 1e-5))))


def _attention(rng: Rng, _block: int) -> Case:
    kv_heads, group, head_dim = _heads(rng)
    page_size = int(_one(rng, PAGE_SIZES))
    new, past = [], []
    for _ in range(int(rng.integers(0, 5))):
        new.append(int(_one(rng, (0, 1, 1, 1, 2, 3, 5, 15, 16, 17, 33))))
        past.append(int(_one(rng, (0, 0, 1, 15, 16, 17, 31, 47, 63, 64, 65))))
    if new and rng.random() < 5 * FAR:
        past[-1] = int(rng.integers(100, 600))
    if new and rng.random() < FAR:
        new[0] = int(_one(rng, MANY_TOKENS))
    lens = tuple(old + count for old, count in zip(past, new, strict=True))
    batch = Ragged(tuple(new), lens, page_size, shared=0, spare=int(rng.integers(0, 2)))
    dims = {"T": sum(new), "D": kv_heads * group * head_dim, "S": len(new), "B": batch.table_width}
    attrs = {"head_dim": head_dim, "kv_heads": kv_heads, "page_size": page_size, "scale": head_dim**-0.5}
    return Case(dims, attrs, inputs=batch)


MAKERS: Mapping[str, Callable[[Rng, int], Case]] = {
    "add": partial(_rows, "MD"),
    "swiglu": partial(_rows, "MF"),
    "gather": _gather,
    "embedding": _embedding,
    "rms_norm": _norm,
    "add_rms_norm": _norm,
    "rope": _rope,
    "linear": partial(_linear, "MKN", True),
    "linear_add": partial(_linear, "MKN", True),
    "gate_up_swiglu": partial(_linear, "MKF", False),
    "rms_norm_gate_up_swiglu": partial(_normed, partial(_linear, "MKF", False)),
    "classifier_argmax": partial(_linear, "MKN", False),
    "kv_write": _kv_write,
    "qkv_rope_kv_write": _projections,
    "rms_norm_qkv_rope_kv_write": partial(_normed, _projections),
    "attention": _attention,
    "argmax": _argmax,
    "exp_sum": _argmax,
    "largest": _largest,
    "softmax": _softmax,
    "top_k": partial(_filter, "k", -1, 100),
    "top_p": partial(_filter, "p", 0, 1.1),
    "min_p": partial(_filter, "p", -0.1, 1.0),
    "sample": partial(_filter, "u", 0, 0.999),
}
