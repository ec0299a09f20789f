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
    for spec in ops.OPS.values():
        if not spec.fused:
            continue
        for pattern in patterns(spec):
            taken: set[int] = set()
            replaced: dict[int, Node] = {}  # id of the last part → the fused node
            for match in Matcher(graph).find(pattern, taken):
                parts = [node for node in graph.nodes if any(node is part for part in match.nodes.values())]
                if _closed(graph, match, parts):
                    node = _fused(match, parts)
                    if accept(node, parts):
                        taken.update(map(id, parts))
                        replaced[id(parts[-1])] = node
            _rewrite(graph, taken, replaced)


def _closed(graph: Graph, match: Match, parts: list[Node]) -> bool:
    """Whether nothing outside of the match depends on what happens inside of it."""
    inside = set(map(id, parts))
    results = {id(match.value(hole)) for hole in match.pattern.results.values()}
    used_by = consumers(graph.nodes)
    final = {id(value) for value in graph.outputs.values()}
    for part in parts:
        for value in part.outputs.values():
            escapes = id(value) in final or any(id(user) not in inside for user in used_by.get(value, ()))
            if escapes and id(value) not in results:
                return False
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    first, last = order[id(parts[0])], order[id(parts[-1])]
    states = {id(value) for part in parts for value in part.args.values() if value.kind == "state"}
    for node in graph.nodes[first:last]:
        if id(node) not in inside and any(id(value) in states or id(value) in results for value in node.args.values()):
            return False  # it reads a result, or the same state, before the fused node would have run
    return True


def _fused(match: Match, parts: list[Node]) -> Node:
    spec = match.pattern.spec
    args = {name: match.value(hole) for name, hole in match.pattern.holes.items()}
    attrs = {name: match.attrs.get(name, 0) for name in spec.attrs}
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
    for node in replaced.values():
        for value in node.outputs.values():
            value.producer = node
