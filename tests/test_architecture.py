"""The house stands as docs/architecture.md says: imports go down, files stay short, nothing evaluates text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.imports import ROOTS, circles, complaints, floors, sources

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_LINES = 400
HEAVY = ("torch", "numba", "triton", "transformers", "huggingface_hub", "hydra", "scipy", "rich")
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def python_files() -> list[Path]:
    """What git tracks; outside a checkout, all that is there."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [REPOSITORY / line for line in listed.stdout.splitlines()]
    else:
        found = [path for root in ("llmcore", *ROOTS, "tests") for path in (REPOSITORY / root).rglob("*.py")]
    return sorted(path for path in found if path.exists())


FILES = python_files()
SOURCES = sources(REPOSITORY, FILES)


def test_there_is_something_to_look_at() -> None:
    rooms = {source.room for source in SOURCES}
    assert {"llmcore.errors", "llmcore.weights", "llmcore.graph", "llmcore_numba", "llmcore_sources"} <= rooms


def test_every_room_has_a_floor_and_imports_go_down() -> None:
    said = complaints(SOURCES, floors(REPOSITORY, SOURCES))
    assert not said, "\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"llmcore/weights/a.py": "from llmcore.errors import near\nfrom llmcore import plugins"}, []),
        ({"llmcore/weights/a.py": "import llmcore.ops.b", "llmcore/ops/b.py": ""}, ["above"]),
        ({"llmcore/weights/a.py": "def f():\n    from llmcore.ops import b", "llmcore/ops/b.py": ""}, ["above"]),
        ({"llmcore/weights/a.py": "if TYPE_CHECKING:\n    from ..ops.b import c", "llmcore/ops/b.py": ""}, ["above"]),
        ({"llmcore/weights/a.py": "from .. import ops", "llmcore/ops/__init__.py": ""}, ["above"]),
        ({"llmcore/weights/__init__.py": "from ..graph import x", "llmcore/graph/b.py": ""}, ["above"]),
        ({"llmcore/weights/a.py": "target = 'llmcore.ops.b:f'", "llmcore/ops/b.py": ""}, []),
        ({"llmcore/graph/a.py": "import llmcore_torch.x", "backends/llmcore_torch/x.py": ""}, ["no backend"]),
        ({"llmcore/cli/a.py": "import llmcore_x", "plugins/llmcore_x/__init__.py": ""}, ["no plugin"]),
        ({"backends/llmcore_b/a.py": "import llmcore_d.m", "demos/llmcore_d/m.py": ""}, ["above"]),
        ({"plugins/llmcore_x/a.py": "from llmcore import LLM", "llmcore/__init__.py": ""}, []),
        ({"llmcore/ops/a.py": "from llmcore import LLM", "llmcore/__init__.py": ""}, ["above"]),
        (
            {"llmcore/weights/a.py": "import llmcore.text.b", "llmcore/text/b.py": "import llmcore.weights.c"},
            ["circle"],
        ),
        ({"llmcore/weights/a.py": "import llmcore.text.b", "llmcore/text/b.py": "import numpy, llmcorelike"}, []),
    ],
)
def test_the_test_sees_what_it_should(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    files = {"llmcore/errors.py": "", "llmcore/plugins.py": "", **files}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = sources(tmp_path, [tmp_path / name for name in files])
    said = complaints(found, floors(tmp_path, found))
    assert len(said) == len(expected) and all(words in line for words, line in zip(expected, said, strict=True)), said


def test_unknown_room_is_refused(tmp_path: Path) -> None:
    found = sources(tmp_path, [tmp_path / "llmcore" / "attic" / "x.py"])
    with pytest.raises(LookupError, match=r"llmcore\.attic"):
        floors(tmp_path, found)


def test_circles_are_found_once() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_files_stay_short() -> None:
    long = {
        str(p.relative_to(REPOSITORY)): n for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_every_module_says_what_it_is() -> None:
    bare = [path for path in FILES if ast.get_docstring(ast.parse(path.read_text("utf-8"))) is None]
    assert not bare, f"no docstring: {bare}"


def dangerous(tree: ast.AST) -> Iterator[str]:
    """Calls and imports by which a file's content could become code."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__" as name)):
                yield f"{name}() on line {node.lineno}"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                yield f"torch.load on line {node.lineno}"
            case ast.Call(keywords=keywords) if any(keyword.arg == "allow_pickle" for keyword in keywords):
                yield f"allow_pickle on line {node.lineno}"
            case ast.Import(names=names) if PICKLING & {alias.name.partition(".")[0] for alias in names}:
                yield f"pickling on line {node.lineno}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in PICKLING:
                yield f"pickling on line {node.lineno}"


def test_nothing_evaluates_or_unpickles() -> None:
    found = {s.path: said for s in SOURCES if (said := list(dangerous(ast.parse(s.path.read_text("utf-8")))))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "def f():\n    exec(x)",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(p)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_dangers_are_seen(text: str) -> None:
    assert len(list(dangerous(ast.parse(text)))) == 1
    assert not list(dangerous(ast.parse("'never eval() or pickle'; model.eval(); np.load(p)")))


@pytest.mark.parametrize(
    "statement",
    [
        "import llmcore",
        "from llmcore.plugins import plugins; assert plugins().backends",
        "import llmcore.weights.sources",
    ],
)
def test_starting_up_imports_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
