"""Kernels compiled by child processes: kept where this process finds them; what goes wrong is left to this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmcore.errors import PluginError
from llmcore.native import LOOPS
from llmcore.native.build import _Helper, compile_missing, missing
from llmcore.native.code import Loader, cache_folder

MODULE = """
from llmcore.native.abi import claim, native_kernel

print("this must not be taken for an answer")

def _nothing(operands, thread, threads):
    claim(operands)

one, two, three = (native_kernel(_nothing) for _ in range(3))
wrong = native_kernel(lambda operands, thread, threads: nowhere)

def address():
    return 4096
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of kernels, in a folder that this process alone has on its path, and an empty cache directory."""
    (tmp_path / "kernels_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    cache_folder.cache_clear()
    yield "kernels_of_the_test"
    cache_folder.cache_clear()
    sys.modules.pop("kernels_of_the_test", None)


def test_children_compile_what_is_missing(module: str) -> None:
    targets = [f"{module}:{name}" for name in ("one", "two", "three")]
    assert missing([*targets, *targets]) == targets
    assert compile_missing(targets, 2) == 3
    assert missing(targets) == []
    assert compile_missing(targets, 2) == 0
    loader = Loader()
    assert len({loader.address(target) for target in targets}) == 3
    assert loader.compiled == 0
    assert module not in sys.modules


def test_a_module_where_the_user_stands_is_none_of_ours(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", [*(entry for entry in sys.path if entry), Path("/nowhere")])
    assert compile_missing([f"{module}:{name}" for name in ("one", "two", "three")], 2) == 3


def test_what_a_child_cannot_compile_is_left(module: str) -> None:
    targets = [f"{module}:{name}" for name in ("wrong", "nowhere", "address", "one", "two")]
    assert compile_missing(targets, 3) == 2
    assert missing(targets) == targets[:2]  # of an address it is known that there is nothing to compile
    loader = Loader()
    assert loader.address(f"{module}:address") == 4096
    with pytest.raises(PluginError, match="nowhere"):
        loader.address(f"{module}:nowhere")
    with pytest.raises(Exception, match="nowhere"):
        loader.address(f"{module}:wrong")


def test_few_kernels_or_one_processor_need_no_child(module: str) -> None:
    targets = [f"{module}:{name}" for name in ("one", "two", "three")]
    assert compile_missing(targets[:2], 8) == 0
    assert compile_missing(targets, 1) == 0
    assert missing(targets) == targets


def test_children_that_cannot_start_are_no_error(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [f"{module}:{name}" for name in ("one", "two", "three")]
    start = _Helper.start

    def late(helper: _Helper) -> None:
        helper._child.wait()
        start(helper)

    with monkeypatch.context() as patch:
        patch.setattr("llmcore.native.build.CHILD", "raise SystemExit(3)")
        patch.setattr(_Helper, "start", late)
        assert compile_missing(targets, 2) == 0
    for executable in ("", "/bin/false", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", executable)
        assert compile_missing(targets, 2) == 0
    assert Loader().address(targets[0])


def test_the_loops_are_where_they_are_said_to_be() -> None:
    loader = Loader()
    assert all(loader.address(target) for target in LOOPS)
