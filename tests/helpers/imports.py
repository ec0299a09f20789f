"""Who imports whom: rooms, floors and the imports between them, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# A room imports from floors below its own, from itself, and from neighbours as long as no circle forms.
FLOORS: Mapping[str, int] = {
    **dict.fromkeys(("llmcore.hookspecs", "llmcore.errors", "llmcore.dims"), 1),
    **dict.fromkeys(("llmcore.weights", "llmcore.text", "llmcore.plugins", "llmcore.config", "llmcore.native"), 2),
    "llmcore.device": 2,
    **dict.fromkeys(("llmcore.ops", "llmcore.layers", "llmcore.cache", "llmcore.model_spec"), 3),
    **dict.fromkeys(("llmcore.model_config", "llmcore.rope_config"), 3),
    "llmcore.registry": 4,
    "llmcore.graph": 5,
    "llmcore.engine": 6,
    **dict.fromkeys(("llmcore", "llmcore.llm", "llmcore.async_llm"), 7),  # the package itself offers LLM
    **dict.fromkeys(("llmcore.cli", "llmcore.testing", "llmcore.verify"), 8),
}
ROOTS: Mapping[str, int] = {"conf": 2, "backends": 5, "plugins": 8, "demos": 9, "tools": 9}  # every package in it


@dataclass(frozen=True)
class Source:
    """One file: its dotted module name (of its package for ``__init__``), the room that it is in, and its text."""

    path: Path
    module: str
    room: str
    is_package: bool


@dataclass(frozen=True)
class Import:
    """``importer`` (a module) imports ``target`` (a dotted name) on ``line``."""

    source: Source
    target: str
    line: int


def sources(repository: Path, files: Iterable[Path]) -> list[Source]:
    """The files below our source roots, with their modules and rooms."""
    found = []
    for path in files:
        parts = path.relative_to(repository).with_suffix("").parts
        if parts[0] not in ("llmcore", *ROOTS) or path.suffix != ".py":
            continue
        dotted = parts if parts[0] == "llmcore" else parts[1:]
        is_package = dotted[-1] == "__init__"
        module = ".".join(dotted[:-1] if is_package else dotted)
        room = ".".join(dotted[:2] if parts[0] == "llmcore" and module != "llmcore" else dotted[:1])
        found.append(Source(path, module, room, is_package))
    return found


def floors(repository: Path, found: Iterable[Source]) -> dict[str, int]:
    """The floor of every room; raises :class:`LookupError` for one that the table does not know."""
    known = {}
    for source in found:
        root = source.path.relative_to(repository).parts[0]
        if root == "llmcore" and source.room not in FLOORS:
            raise LookupError(f"the room {source.room} has no floor: give it one here and in docs/architecture.md")
        known[source.room] = FLOORS[source.room] if root == "llmcore" else ROOTS[root]
    return known


def imports_of(source: Source) -> Iterator[Import]:
    """All imports of a file, those inside functions and under ``TYPE_CHECKING`` too; relative ones made absolute."""
    package = source.module if source.is_package else source.module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                yield Import(source, f"{base}.{alias.name}", node.lineno)


def room_of(target: str, rooms: Iterable[str]) -> str | None:
    """The room that a dotted name lies in: the longest that it starts with; None where it is not ours."""
    holding = [room for room in rooms if target == room or target.startswith(f"{room}.")]
    return max(holding, key=len, default=None)


def complaints(found: Iterable[Source], known: Mapping[str, int]) -> list[str]:
    """Imports that go up, and circles between rooms of one floor."""
    said = []
    beside: dict[str, set[str]] = {}  # room → rooms of the same floor that it imports
    for source in found:
        for imported in imports_of(source):
            target = room_of(imported.target, known)
            if target is None or target == source.room:
                continue
            place = f"{source.path}:{imported.line}: {source.module} (floor {known[source.room]})"
            core = source.module.partition(".")[0] == "llmcore"
            if core and target.partition(".")[0] != "llmcore":
                said.append(f"{place} imports {imported.target}: the core imports no backend and no plugin")
            elif known[target] > known[source.room]:
                said.append(f"{place} imports {imported.target} (floor {known[target]}), which is above it")
            elif known[target] == known[source.room]:
                beside.setdefault(source.room, set()).add(target)
    return said + [f"circle between rooms of one floor: {' → '.join(circle)}" for circle in circles(beside)]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """One closed path through every room that can reach itself."""
    found = []
    for start in sorted(edges):
        path = _path_back(edges, start)
        if path and start == min(path):  # each circle once, from its first room
            found.append(path)
    return found


def _path_back(edges: Mapping[str, set[str]], start: str) -> list[str]:
    came: dict[str, str] = {}
    waiting = [start]
    while waiting:
        room = waiting.pop()
        for following in sorted(edges.get(room, ())):
            if following == start:
                path = [start, room]
                while path[-1] != start:
                    path.append(came[path[-1]])
                return path[::-1]
            if following not in came:
                came[following] = room
                waiting.append(following)
    return []
