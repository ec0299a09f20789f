"""Fusion: parts of a graph replaced by a fused op, where some backend offers it and the user's wishes allow it."""

from __future__ import annotations

from collections.abc import Callable

from llmcore import ops
from llmcore.graph.graph import Graph, Node, consumers
from llmcore.graph.pattern import Match, Matcher, patterns

Accept = Callable[[Node, list[Node]], bool]


def fuse(graph: Graph, accept: Accept) -> None:
    """Rewrites ``graph`` in place.

    Fused ops are tried in the order of their declaration. A match is taken if its inner values are used nowhere else,
    nothing between its nodes would see the change of order, and ``accept(fused node, its parts)`` says so: that is
    where backends are asked.
    """
    matcher, surroundings = Matcher(graph), _Surroundings(graph)
    for pattern in (each for spec in ops.OPS.values() if spec.fused for each in patterns(spec)):
        taken: set[int] = set()
        replaced: dict[int, Node] = {}  # id of the last part → the fused node
        for match in matcher.find(pattern, taken):
            parts = surroundings.in_order(match)
            if surroundings.allow(match, parts):
                node = _fused(match, parts)
                if accept(node, parts):
                    taken.update(map(id, parts))
                    replaced[id(parts[-1])] = node
        if replaced:
            _rewrite(graph, taken, replaced)
            matcher, surroundings = Matcher(graph), _Surroundings(graph)


class _Surroundings:
    """What a match must leave as it is: the nodes around it."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.place = {id(node): i for i, node in enumerate(graph.nodes)}
        self.users = consumers(graph.nodes)
        self.final = set(graph.outputs.values())

    def in_order(self, match: Match) -> list[Node]:
        """The nodes of ``match`` as they run; one may stand for two equal parts."""
        found = {id(node): node for node in match.nodes.values()}
        return sorted(found.values(), key=lambda node: self.place[id(node)])

    def allow(self, match: Match, parts: list[Node]) -> bool:
        """Whether nothing outside of the match depends on what happens inside of it."""
        inside = set(map(id, parts))
        results = {match.value(hole) for hole in match.pattern.results.values()}
        made = {value for part in parts for value in part.outputs.values()}
        if any(match.value(hole) in made for hole in match.pattern.holes.values()):
            return False  # an argument (x, in x + x) that nobody would make any more
        for part in parts:
            for value in part.outputs.values():
                escapes = value in self.final or any(id(user) not in inside for user in self.users.get(value, ()))
                if escapes and value not in results:
                    return False
        early = results | {value for part in parts for value in part.args.values() if value.kind == "state"}
        between = self.nodes[self.place[id(parts[0])] : self.place[id(parts[-1])]]
        # The fused node runs where its last part did: too late for one that needs a result, or the state, before.
        return not any(id(node) not in inside and early & set(node.args.values()) for node in between)


def _fused(match: Match, parts: list[Node]) -> Node:
    spec = match.pattern.spec
    args = {name: match.value(hole) for name, hole in match.pattern.holes.items()}
    attrs = spec.coerce({name: match.attrs.get(name, 0) for name in spec.attrs})
    dims = spec.unify({name: value.shape for name, value in args.items()})
    node = Node(spec, _common_path(parts), args, attrs, dims)
    node.outputs = {name: match.value(hole) for name, hole in match.pattern.results.items()}
    return node


def _common_path(parts: list[Node]) -> str:
    paths = [part.path.split(".") for part in parts]
    shared = []
    for pieces in zip(*paths, strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return ".".join(shared) or parts[-1].path


def _rewrite(graph: Graph, taken: set[int], replaced: dict[int, Node]) -> None:
    nodes = []
    for node in graph.nodes:
        if id(node) in replaced:
            nodes.append(replaced[id(node)])
        elif id(node) not in taken:
            nodes.append(node)
    graph.nodes = nodes
