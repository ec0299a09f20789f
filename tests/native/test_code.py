"""Machine code: kept in a folder that names what they were made of, found again by the next process."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmcore.native.abi import claim, native_kernel, specialised, store_i64, tensor
from llmcore.native.code import CompileWarning, Loader, MachineCode, cache_folder
from llmcore.plugins import resolve
from llmcore_numba.plugin import llmcore_backends

KEEP = """
import sys
from llmcore.native.code import cache_folder, loader
address = loader().address("llmcore_numba.elementwise:gather")
assert address == loader().address("llmcore_numba.elementwise:gather")
print(loader().compiled, "numba" in sys.modules, cache_folder("llmcore_numba"))
"""

ADDED = 1


def _add(operands, _thread, _threads):
    if claim(operands) == 0:
        store_i64(tensor(operands, 0), ADDED)


def _add_in_steps(operands, _thread, _threads):
    if claim(operands) == 0:
        for value in range(0, ADDED + 1, ADDED + claim(operands) - 1):  # range raises for a step of 0
            store_i64(tensor(operands, 0), value)


def _call(address: int) -> int:
    """What a kernel stores in its first tensor."""
    words = np.zeros(4, np.int64)
    operands = np.array([words.ctypes.data, 0, words[2:].ctypes.data], np.int64)
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address)(operands.ctypes.data, 0, 1)
    return int(words[2])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache directory, forgotten afterwards."""
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    cache_folder.cache_clear()
    yield tmp_path / "cache"
    cache_folder.cache_clear()


def test_the_next_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "LLMCORE_CACHE": str(tmp_path)}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KEEP], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        assert not done.stderr  # no progress line: stderr is no terminal
        outputs.append(done.stdout.split())
    (*first, folder), (*second, same) = outputs
    assert (first, second) == (["1", "True"], ["0", "False"])  # what is kept is linked without a compiler
    assert folder == same
    assert Path(folder).parent == tmp_path / "kernels"
    assert Path(folder).stat().st_mode & 0o777 == 0o700


def test_kernels_need_nothing_of_numba(cache: Path) -> None:
    """A kernel that may raise drags in Numba's runtime, and with it 0.2 s and 20 MB at each start."""
    (numba,) = (backend for backend in llmcore_backends() if backend.name == "numba")
    plain = {kernel.op: kernel for kernel in reversed(numba.kernels)}
    needs = {kernel.target: resolve(kernel.target).compile().runtime for kernel in plain.values()}
    assert not {target: symbols for target, symbols in needs.items() if symbols}


def test_a_kernel_that_may_raise_runs_all_the_same(cache: Path) -> None:
    kernel = native_kernel(_add_in_steps)
    assert kernel.compile().runtime
    assert _call(kernel()) == 1
    again = Loader()
    assert _call(again.own(f"{__name__}:_add_in_steps", kernel)) == 1
    assert again.compiled == 0


def test_damaged_code_is_compiled_anew(cache: Path) -> None:
    assert _call(native_kernel(_add)()) == 1
    (file,) = cache.rglob("*.o")
    data = file.read_bytes()
    for damaged in (b"", data[:-1], data[:40], b"{}\n" + data, data.replace(b"ELF", b"FLE"), b"[1]\n"):
        file.write_bytes(damaged)
        other = Loader()
        assert _call(other.own(f"{__name__}:_add", native_kernel(_add))) == 1
        assert other.compiled == 1
        assert MachineCode.unpacked(file.read_bytes())


def test_a_target_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore_numba.kv_layout.padded", lambda: "here", raising=True)
    with pytest.raises(TypeError, match="returned 'here'"):
        Loader().address("llmcore_numba.kv_layout:padded")


def test_a_new_folder_replaces_those_of_its_package_that_nobody_uses(cache: Path) -> None:
    kernels = cache / "kernels"
    month_ago, key = time.time() - 31 * 24 * 3600, "0123456789abcdef0123"
    for name in (f"llmcore_numba-{key}", f"other-{key}", f"llmcore_numba-{key[::-1]}", "llmcore_numba-x"):
        (kernels / name / "inner").mkdir(parents=True)
        (kernels / name / "inner" / "kernel.o").touch()
        if name != f"llmcore_numba-{key[::-1]}":
            os.utime(kernels / name, (month_ago, month_ago))
    kernels.chmod(0o700)
    folder = cache_folder("llmcore_numba")
    assert folder is not None
    left = {path.name for path in kernels.iterdir()}
    assert left == {folder.name, f"other-{key}", f"llmcore_numba-{key[::-1]}", "llmcore_numba-x"}


def test_a_folder_that_is_asked_for_is_not_old(cache: Path) -> None:
    folder = cache_folder("llmcore_numba")
    assert folder is not None
    os.utime(folder, (0, 0))
    cache_folder.cache_clear()
    assert cache_folder("llmcore_numba") == folder
    assert folder.stat().st_mtime > time.time() - 3600


def test_without_a_place_to_keep_them_kernels_are_compiled_all_the_same(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(CompileWarning, match="LLMCORE_CACHE"):
        assert _call(native_kernel(_add)()) == 1


def test_a_changed_helper_is_another_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llmcore_test_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernel.py").touch()
    helper = package / "helper.py"
    helper.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("llmcore_test_package.kernel")
    before = cache_folder("llmcore_test_package")
    helper.write_text("VALUE = 2\n")
    cache_folder.cache_clear()
    assert before != cache_folder("llmcore_test_package")


def test_specialised_copies_have_their_own_constants(cache: Path) -> None:
    two = native_kernel(specialised(_add, "add_two", ADDED=2))
    three = native_kernel(specialised(_add, "add_three", ADDED=3))
    assert [_call(two()), _call(three()), _call(native_kernel(_add)())] == [2, 3, 1]
    assert {path.name for path in cache.rglob("*.o")} == {
        f"{__name__}-{name}.o" for name in ("add_two", "add_three", "_add")
    }


def test_a_terminal_is_told_once_what_is_compiled(cache: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    native_kernel(_add)()
    shown = capsys.readouterr().err
    assert "_add" in shown
    assert shown.endswith("\r\x1b[K")
    native_kernel(_add)()  # kept by now
    assert not capsys.readouterr().err
