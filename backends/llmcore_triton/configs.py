"""Tile sizes of kernels: from tables by device and shape, never by trying them out in a user's first step.

``tables/<device>.json`` holds what a search has found: kernel name → list of entries ``{"shape": [...], "meta":
{...}, "num_warps": n, "num_stages": n}``. Where a table has no entry for a shape, the nearest one is taken (by the sum
of the differences of logarithms); where there is no table, the kernel's own default. What a kernel needs to be right is
never in ``meta``: an entry may be of another shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import inf, log
from pathlib import Path
from typing import Any

from llmcore_triton.device import INTERPRETING, target

if INTERPRETING:
    from llmcore_triton import interpreter

    interpreter.repair()  # every kernel's module imports this one

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Config:
    """How one kernel is launched.

    Attributes:
        meta: its ``constexpr`` tile sizes by name.
    """

    meta: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {**self.meta, "num_warps": self.num_warps, "num_stages": self.num_stages}


@cache
def table(device: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The table of ``device``; empty where there is none."""
    path = TABLES / f"{device}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


Answer = Callable[[str, tuple[int, ...], Config], Config]
_answers: list[Answer] = []


def being_searched() -> bool:
    """Whether a search answers: nothing that follows from an answer may be remembered then."""
    return bool(_answers)


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """While open, ``answer(kernel, shape, default)`` is what :func:`config` returns: a search makes tables of that."""
    _answers.append(answer)
    try:
        yield
    finally:
        _answers.pop()


def config(kernel: str, shape: tuple[int, ...], default: Config) -> Config:
    """The configuration of ``kernel`` for ``shape`` on the device at hand."""
    if _answers:
        return _answers[-1](kernel, shape, default)
    return _config(kernel, shape, default.num_warps, default.num_stages, tuple(default.meta.items()), target().name)


@cache
def _config(
    kernel: str, shape: tuple[int, ...], warps: int, stages: int, meta: tuple[tuple[str, int], ...], device: str
) -> Config:
    default = Config(dict(meta), warps, stages)
    entries = [entry for entry in table(device).get(kernel, ()) if entry["meta"].keys() == default.meta.keys()]
    best = min(entries, key=lambda entry: distance(shape, entry["shape"]), default=None)
    if best is None or distance(shape, best["shape"]) == inf:
        return default
    return Config({**default.meta, **best["meta"]}, best["num_warps"], best["num_stages"])


def distance(a: Sequence[int], b: Sequence[int]) -> float:
    """How far two shapes are apart; infinite where they have different ranks."""
    if len(a) != len(b):
        return inf
    return sum(abs(log(max(x, 1)) - log(max(y, 1))) for x, y in zip(a, b, strict=True))


def warps(elements: int, each: int = 8) -> int:
    """How many warps a program over ``elements`` has, if a thread takes ``each``: 16 bytes of bfloat16 are 8."""
    wanted = elements // (each * target().warp)
    return min(1 << max(wanted.bit_length() - 1, 0), 16)
