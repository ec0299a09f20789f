"""The memory plan: every intermediate value gets an offset in one arena, by liveness.

Values that are never alive together share bytes. An output takes over the memory of an input that dies with the op
where the op allows it. Offsets are assigned by the greedy-by-size strategy of Pisarchyk & Lee 2020
(arXiv:2001.03288); the lower bound that the result is compared with is the largest set of bytes alive at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from llmcore.device.base import numpy_dtype
from llmcore.dims import Shape, extent
from llmcore.graph.graph import Graph, Node, Value

ALIGNMENT = 64  # bytes: a cache line


@dataclass
class Block:
    """Bytes that one value, or a chain of values taken over in place, occupies from ``first`` to ``last`` node."""

    values: list[Value]
    nbytes: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class Plan:
    """Where everything lies.

    Attributes:
        offsets: value → byte offset in the arena.
        nbytes: size of the arena.
        lower_bound: the largest live set: no plan can be smaller.
        total: what the values would take without sharing.
        workspaces: node number → byte offset in the arena of what its kernel works in.
    """

    offsets: Mapping[Value, int]
    nbytes: int
    lower_bound: int
    total: int
    blocks: Sequence[Block] = field(repr=False)
    workspaces: Mapping[int, int] = field(default_factory=dict)

    @property
    def reuse(self) -> float:
        """How many times over the arena's bytes are used."""
        return self.total / self.nbytes if self.nbytes else 1.0


def nbytes_of(shape: Shape, sizes: Mapping[str, int], itemsize: int) -> int:
    """Bytes of a dense value, rounded up to the alignment; at least one line, so that addresses stay distinct."""
    count = itemsize
    for dim in shape:
        count *= extent(dim, sizes)
    return _rounded(count)


def _rounded(nbytes: int) -> int:
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT


def plan(
    graph: Graph, sizes: Mapping[str, int], dtypes: Mapping[str, str], workspaces: Mapping[int, int] | None = None
) -> Plan:
    """Plans the temporaries of ``graph`` at the given sizes; its outputs live elsewhere.

    Args:
        dtypes: value dtype (``act`` …) → numpy dtype name.
        workspaces: node number → bytes that its kernel works in, alive for that node alone.
    """
    blocks = _blocks(graph, sizes, {name: numpy_dtype(kind).itemsize for name, kind in dtypes.items()})
    lone = {node: Block([], _rounded(nbytes), node, node) for node, nbytes in (workspaces or {}).items()}
    blocks += lone.values()
    size = _place(blocks)
    bound = _largest_live_set(blocks, len(graph.nodes))
    offsets = {value: block.offset for block in blocks for value in block.values}
    total = sum(block.nbytes for block in lone.values()) + sum(
        nbytes_of(value.shape, sizes, numpy_dtype(dtypes[value.dtype]).itemsize)
        for block in blocks
        for value in block.values
    )
    return Plan(offsets, size, bound, total, blocks, {node: block.offset for node, block in lone.items()})


def _largest_live_set(blocks: Sequence[Block], nodes: int) -> int:
    """The most bytes that are alive at any node."""
    change = [0] * (nodes + 1)
    for block in blocks:
        change[block.first] += block.nbytes
        change[block.last + 1] -= block.nbytes
    return max(accumulate(change), default=0)


def _blocks(graph: Graph, sizes: Mapping[str, int], itemsize: Mapping[str, int]) -> list[Block]:
    external = set(graph.outputs.values())
    last_use: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        last_use.update(dict.fromkeys(node.values(), i))
    block_of: dict[Value, Block] = {}
    blocks: list[Block] = []
    for i, node in enumerate(graph.nodes):
        taken: set[int] = set()
        for name, value in node.outputs.items():
            if value in external:
                continue
            size = nbytes_of(value.shape, sizes, itemsize[value.dtype])
            heir = _inherited(node, name, i, size, block_of, taken)
            if heir is None:
                heir = Block([], size, i, i)
                blocks.append(heir)
            taken.add(id(heir))
            heir.values.append(value)
            heir.last = last_use[value]
            block_of[value] = heir
    return blocks


def _inherited(
    node: Node, output: str, i: int, size: int, block_of: Mapping[Value, Block], taken: set[int]
) -> Block | None:
    """The block of an input that dies at node ``i`` and that ``output`` may take over."""
    for name in node.op.inplace.get(output, ()):
        value = node.args.get(name)
        block = block_of.get(value) if value is not None else None
        shared = (
            sum(argument is value for argument in node.args.values()) > 1
        )  # add(x, x) may be read after it is written
        if block and block.last == i and block.nbytes == size and id(block) not in taken and not shared:
            return block
    return None


def _place(blocks: Sequence[Block]) -> int:
    """Assigns offsets; returns the arena's size. Of a few orders the one that packs best is kept."""
    orders = (
        sorted(blocks, key=lambda b: (-b.nbytes, b.first)),
        sorted(blocks, key=lambda b: (-b.nbytes * (b.last - b.first + 1), b.first)),
        sorted(blocks, key=lambda b: (b.first, -b.nbytes)),
    )
    best: tuple[int, list[int]] | None = None
    for order in orders:
        size = _fit(order)
        if best is None or size < best[0]:
            best = size, [block.offset for block in blocks]
    if best is None:
        return 0
    for block, offset in zip(blocks, best[1], strict=True):
        block.offset = offset
    return best[0]


def _fit(order: Sequence[Block]) -> int:
    """Puts each block at the lowest offset that is free for as long as it lives."""
    placed: list[list[Block]] = [[] for _ in range(max((block.last for block in order), default=0) + 1)]  # by node
    for block in order:
        lives = range(block.first, block.last + 1)
        met = {id(other): other for i in lives for other in placed[i]}.values()
        offset = 0
        for other in sorted(met, key=lambda b: b.offset):
            if other.offset - offset >= block.nbytes:
                break
            offset = max(offset, other.offset + other.nbytes)
        block.offset = offset
        for i in lives:
            placed[i].append(block)
    return max((block.offset + block.nbytes for block in order), default=0)
