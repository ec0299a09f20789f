"""Patterns: a fused op's decomposition, traced once and looked for in a graph."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from llmcore import ops
from llmcore.graph.graph import Graph, Node, Value
from llmcore.ops import OpSpec


@dataclass(eq=False)
class Hole:
    """A tensor of the pattern: an argument of the fused op, or what one of its parts makes."""

    name: str
    part: Part | None = None


@dataclass(frozen=True)
class AttrHole:
    """An attribute of the fused op, wherever its parts use it."""

    name: str


@dataclass(eq=False)
class Part:
    """One op of the decomposition."""

    op: str
    args: dict[str, Hole]
    attrs: dict[str, Any]
    outputs: dict[str, Hole] = field(default_factory=dict)


class Tracer:
    """A builder that records a decomposition."""

    def __init__(self) -> None:
        """Nothing recorded yet."""
        self.parts: list[Part] = []

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Records one part."""
        spec = ops.get(name)
        attrs = {key: arguments.pop(key) for key in spec.attrs}
        part = Part(name, {key: value for key, value in arguments.items() if value is not None}, attrs)
        part.outputs = {param.name: Hole(param.name, part) for param in spec.outputs}
        self.parts.append(part)
        made = tuple(part.outputs.values())
        return made[0] if len(made) == 1 else made or None


@dataclass(frozen=True, eq=False)
class Pattern:
    """One variant of a fused op: which optional arguments it has, and the parts that it stands for."""

    spec: OpSpec
    holes: dict[str, Hole]
    parts: tuple[Part, ...]
    results: dict[str, Hole]


def patterns(spec: OpSpec) -> Iterator[Pattern]:
    """All variants of fused op ``spec``, those with most arguments first."""
    assert spec.decompose is not None
    tensors = spec.of("input", "weight", "state")
    optional = [param.name for param in tensors if param.optional]
    for count in range(len(optional), -1, -1):
        for present in combinations(optional, count):
            holes = {p.name: Hole(p.name) for p in tensors if not p.optional or p.name in present}
            tracer = Tracer()
            attrs = {name: AttrHole(name) for name in spec.attrs}
            results = spec.decompose(tracer, *(holes.get(p.name) for p in tensors), **attrs)
            made = results if isinstance(results, tuple) else (results,)
            used = {id(hole) for part in tracer.parts for hole in part.args.values()}
            if all(id(hole) in used for hole in holes.values()):  # else an optional argument that means nothing alone
                outputs = {param.name: hole for param, hole in zip(spec.outputs, made, strict=True)}
                yield Pattern(spec, holes, tuple(tracer.parts), outputs)


@dataclass
class Match:
    """Where a pattern was found."""

    pattern: Pattern
    nodes: dict[int, Node]  # id of a part → its node
    values: dict[int, Value]  # id of a hole → its value
    attrs: dict[str, Any]

    def value(self, hole: Hole) -> Value:
        """What stands for ``hole``."""
        return self.values[id(hole)]


class Matcher:
    """Looks for patterns in one graph."""

    def __init__(self, graph: Graph) -> None:
        """Indexes the graph's nodes by call (op and the arguments that it has), place and what they make."""
        self.by_call: dict[tuple[str, frozenset[str]], list[Node]] = {}
        for node in graph.nodes:
            self.by_call.setdefault((node.op.name, frozenset(node.args)), []).append(node)
        self.place = {id(node): i for i, node in enumerate(graph.nodes)}
        self.producer = {value: node for node in graph.nodes for value in node.outputs.values()}

    def find(self, pattern: Pattern, taken: set[int]) -> Iterator[Match]:
        """Every match, in graph order; nodes with ids in ``taken`` are left alone."""
        if not all(self._alike(part) for part in pattern.parts):
            return
        anchor = pattern.parts[-1]
        for node in self._alike(anchor):
            if id(node) not in taken:
                match = Match(pattern, {}, {}, {})
                if self._part(match, anchor, node, taken) and self._others(match, taken):
                    yield match

    def _alike(self, part: Part) -> Sequence[Node]:
        """Nodes of the op of ``part`` with the arguments of ``part``, in graph order."""
        return self.by_call.get((part.op, frozenset(part.args)), ())

    def _others(self, match: Match, taken: set[int]) -> bool:
        """Finds the parts that the anchor, a store into the cache, does not depend on: the last part first."""
        for part in reversed(match.pattern.parts):
            if id(part) in match.nodes:
                continue
            for node in self._candidates(match, part):
                trial = Match(match.pattern, dict(match.nodes), dict(match.values), dict(match.attrs))
                if id(node) not in taken and self._part(trial, part, node, taken):
                    match.nodes, match.values, match.attrs = trial.nodes, trial.values, trial.attrs
                    break
            else:
                return False
        return True

    def _candidates(self, match: Match, part: Part) -> Iterator[Node]:
        """Nodes that ``part`` may be; those near to the anchor first, for they are of the same layer."""
        used = {id(node) for node in match.nodes.values()}
        anchor = self.place[id(match.nodes[id(match.pattern.parts[-1])])]
        nodes = self._alike(part)
        right = bisect_left(nodes, anchor, key=lambda node: self.place[id(node)])
        left = right - 1
        while left >= 0 or right < len(nodes):
            before = anchor - self.place[id(nodes[left])] if left >= 0 else math.inf
            after = self.place[id(nodes[right])] - anchor if right < len(nodes) else math.inf
            if before <= after:
                nearest, left = nodes[left], left - 1
            else:
                nearest, right = nodes[right], right + 1
            if id(nearest) not in used:
                yield nearest

    def _part(self, match: Match, part: Part, node: Node, taken: set[int]) -> bool:
        if id(part) in match.nodes:
            return match.nodes[id(part)] is node
        if node.op.name != part.op or node.args.keys() != part.args.keys() or id(node) in taken:
            return False
        match.nodes[id(part)] = node
        for name, hole in part.outputs.items():
            if not self._bind(match, hole, node.outputs[name]):
                return False
        for name, wanted in part.attrs.items():
            if not _attribute(match, wanted, node.attrs[name]):
                return False
        return all(self._argument(match, hole, node.args[name], taken) for name, hole in part.args.items())

    def _argument(self, match: Match, hole: Hole, value: Value, taken: set[int]) -> bool:
        if not self._bind(match, hole, value):
            return False
        if hole.part is None:
            return True
        producer = self.producer.get(value)
        return producer is not None and self._part(match, hole.part, producer, taken)

    def _bind(self, match: Match, hole: Hole, value: Value) -> bool:
        return match.values.setdefault(id(hole), value) is value


def _attribute(match: Match, wanted: Any, value: Any) -> bool:
    if isinstance(wanted, AttrHole):
        return bool(match.attrs.setdefault(wanted.name, value) == value)
    return bool(wanted == value)
