"""The tokens that ops begin with, normed on the way where the op begins with a norm, and where they wait for it.

A stage that prepares tokens for an op (quantizes, rounds or norms them) writes them to the op's workspace for all
threads. For one token it would cost more than the work in it: threads would wait for each other, and fetch from each
other's caches what one of them has made. So there is a kernel of each op for one token, in which every thread that gets
a chunk makes what it needs of the token in its own memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcore.native.abi import NativeFunction, dim, f64_attr, inlined, native_kernel, specialised, tensor
from llmcore_numba.family import Family
from llmcore_numba.operands import names_of
from llmcore_numba.rms_norm import normalise

X = NORM = T = K = G = E = NORM_EPS = WORKSPACE = 0  # operands: each op has its own

ALONE = "_alone"  # the end of the name of a kernel for one token


def _as_they_are(operands, _first, _last, _rows):
    """The address that tokens ``first`` … ``last`` lie behind, each as far as its number says."""
    return tensor(operands, X)


def _normed(operands, first, last, rows):
    """The same for tokens that are normed, to ``rows``."""
    inner, size = dim(operands, K), dim(operands, E)
    source, weight, eps = tensor(operands, X) + first * inner * 4, tensor(operands, NORM), f64_attr(operands, NORM_EPS)
    at, end = 0, (last + 1 - first) * inner * 4
    while at < end:
        normalise(source + at, weight, rows + at, size, eps)
        at += size * 4
    return rows - first * inner * 4


def _at_the_beginning(operands):
    """Where in the workspace prepared tokens are."""
    return tensor(operands, WORKSPACE)


@inlined
def key_bytes(tokens, width):
    """Bytes of keys and values that wait in the workspace to be written to the cache."""
    return tokens * width * 8 + 63 & ~63


def _behind_keys(operands):
    return tensor(operands, WORKSPACE) + key_bytes(dim(operands, T), dim(operands, G))


def begins_with_norm(op: str) -> bool:
    """Whether tokens of ``op`` are normed."""
    return "NORM" in names_of(op)


def constants_for(op: str) -> dict[str, Any]:
    """What kernels of ``op`` are specialised with: the numbers of its operands, and how to find its tokens.

    ``input_of(operands, first, last, rows)`` and ``prepared(operands)``; ``T`` is the number of tokens whatever the op
    calls it.
    """
    names = names_of(op)
    numbers = {"T": names.get("T", names.get("M")), **names}
    found = _normed if begins_with_norm(op) else _as_they_are
    place = _behind_keys if "KV" in names else _at_the_beginning
    return {**numbers, "input_of": part(found, op, numbers), "prepared": part(place, op, numbers)}


def part(template: Callable[..., Any], op: str, constants: dict[str, Any]) -> Callable[..., Any]:
    """A helper of the kernels of ``op``."""
    return inlined(specialised(template, f"{template.__name__}_{op}", **constants))


input_of, prepared = inlined(_as_they_are), inlined(_at_the_beginning)  # each op has its own


def kernels_of(op: str, template: Any, parts_for: Callable[..., dict[str, Any]], template_alone: Any = None) -> Family:
    """Kernels of ``op``, ``int4_min`` and for one token ``int4_min_alone``, made of one template, or one of each kind.

    Args:
        template: ``f(operands, thread, threads)`` over the global names that ``parts_for(op, name, alone=…)`` gives.
        template_alone: the one for one token, if that is another.
    """

    def make(name: str) -> NativeFunction:
        alone = name.endswith(ALONE)
        parts = parts_for(op, name.removesuffix(ALONE), alone=alone)
        body = template_alone if alone and template_alone else template
        return native_kernel(specialised(body, f"{op}_{name}", **parts))

    return Family(make)
