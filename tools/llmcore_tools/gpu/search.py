"""The search for a kernel's fastest configuration: hill climbing from its default, one tile size or option at a time.

Costs come from a function, so nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from math import inf

from llmcore_triton.configs import Config

WARPS = 1, 2, 4, 8, 16
STAGES = 1, 2, 3, 4, 5
GAIN = 0.02  # what a configuration must win to be taken: below, it may be noise
TILES = 16, 65536  # sizes from one to the other, where the default is one of them


@dataclass(frozen=True)
class Result:
    """The best configuration, its cost and the default's, and how many were tried."""

    best: Config
    cost: float
    default_cost: float
    tried: int


def search(default: Config, cost: Callable[[Config], float]) -> Result:
    """Climbs from ``default`` until no neighbour, nor any trade of two tiles, is better by :data:`GAIN`.

    Args:
        cost: of a configuration; infinite where it cannot run. Called once for each.
    """
    known: dict[tuple[tuple[tuple[str, int], ...], int, int], float] = {}

    def once(config: Config) -> float:
        key = tuple(sorted(config.meta.items())), config.num_warps, config.num_stages
        if key not in known:
            known[key] = cost(config)
        return known[key]

    best, lowest = default, once(default)
    first = lowest
    while True:
        for nearby in (neighbours, trades):
            better = min(nearby(best), key=once, default=best)
            if once(better) < lowest - GAIN * abs(lowest) or (lowest == inf and once(better) < inf):
                break
        else:
            return Result(best, lowest, first, len(known))
        best, lowest = better, once(better)


def neighbours(config: Config) -> Iterator[Config]:
    """Configurations that differ in one thing: a tile twice or half as large, the next number of warps or stages."""
    for name, size in _tiles(config):
        for other in (size * 2, size // 2):
            if _is_tile(other, size):
                yield replace(config, meta={**config.meta, name: other})
    for warps in _beside(config.num_warps, WARPS):
        yield replace(config, num_warps=warps)
    for stages in _beside(config.num_stages, STAGES):
        yield replace(config, num_stages=stages)


def trades(config: Config) -> Iterator[Config]:
    """Configurations with one tile twice and another half as large: where shared memory or registers are all taken."""
    for (name, size), (other, its) in permutations(_tiles(config), 2):
        if _is_tile(size * 2, size) and _is_tile(its // 2, its):
            yield replace(config, meta={**config.meta, name: size * 2, other: its // 2})


def _tiles(config: Config) -> list[tuple[str, int]]:
    """The sizes that may change: no tile is a flag or no power of two."""
    return [
        (name, size) for name, size in config.meta.items() if type(size) is int and size > 0 and not size & (size - 1)
    ]


def _is_tile(size: int, before: int) -> bool:
    return min(TILES[0], before) <= size <= max(TILES[1], before)


def _beside(value: int, scale: tuple[int, ...]) -> tuple[int, ...]:
    """The next values of a scale, down and up."""
    return *[each for each in scale if each < value][-1:], *[each for each in scale if each > value][:1]
