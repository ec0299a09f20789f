"""Compiled kernels: kept in a folder that names what they were made of, found again by the next process."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from llmcore.native import compiling
from llmcore.native.abi import claim, native_kernel, specialised, store_i64, tensor

KEEP = """
import sys
from llmcore.native import compiling
from llmcore_numba.elementwise import gather
address = gather()
assert address == gather()
print(gather._compiled.cache_hits, compiling.cache_folder("llmcore_numba.elementwise"))
"""

ADDED = 1


def _add(operands, _thread, _threads):
    if claim(operands) == 0:
        store_i64(tensor(operands, 0), ADDED)


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
    compiling.cache_folder.cache_clear()
    yield tmp_path / "cache"
    compiling.cache_folder.cache_clear()


def test_the_next_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "LLMCORE_CACHE": str(tmp_path)}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KEEP], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        assert not done.stderr  # no progress line: stderr is no terminal
        outputs.append(done.stdout.split())
    (first, folder), (second, same) = outputs
    assert (first, second) == ("0", "1")
    assert folder == same
    assert Path(folder).parent == tmp_path / "kernels"
    assert Path(folder).stat().st_mode & 0o777 == 0o700


def test_numbas_own_setting_is_left_alone(cache: Path) -> None:
    before = numba.config.CACHE_DIR
    assert _call(native_kernel(_add)()) == 1
    assert before == numba.config.CACHE_DIR
    assert any((cache / "kernels").glob("*/*/*.nbi"))


def test_threads_that_compile_at_once_do_not_mix_their_folders(tmp_path: Path) -> None:
    before = numba.config.CACHE_DIR
    inside, finish = threading.Event(), threading.Event()
    seen: dict[str, str] = {}

    def first() -> None:
        with compiling._caching_in(tmp_path / "first"):
            inside.set()
            finish.wait(10)
            seen["first"] = numba.config.CACHE_DIR

    def second() -> None:
        inside.wait(10)
        with compiling._caching_in(tmp_path / "second"):
            seen["second"] = numba.config.CACHE_DIR
            finish.wait(10)

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    time.sleep(0.05)  # were it not kept out, the second would be in by now
    finish.set()
    for thread in threads:
        thread.join()
    assert seen == {name: str(tmp_path / name) for name in ("first", "second")}
    assert before == numba.config.CACHE_DIR


def test_a_new_folder_replaces_those_of_its_package_that_nobody_uses(cache: Path) -> None:
    kernels = cache / "kernels"
    month_ago, key = time.time() - 31 * 24 * 3600, "0123456789abcdef0123"
    for name in (f"llmcore_numba-{key}", f"other-{key}", f"llmcore_numba-{key[::-1]}", "llmcore_numba-x"):
        (kernels / name / "inner").mkdir(parents=True)
        (kernels / name / "inner" / "kernel.nbi").touch()
        if name != f"llmcore_numba-{key[::-1]}":
            os.utime(kernels / name, (month_ago, month_ago))
    kernels.chmod(0o700)
    folder = compiling.cache_folder("llmcore_numba.elementwise")
    assert folder is not None
    left = {path.name for path in kernels.iterdir()}
    assert left == {folder.name, f"other-{key}", f"llmcore_numba-{key[::-1]}", "llmcore_numba-x"}


def test_a_folder_that_is_asked_for_is_not_old(cache: Path) -> None:
    folder = compiling.cache_folder("llmcore_numba.elementwise")
    assert folder is not None
    os.utime(folder, (0, 0))
    compiling.cache_folder.cache_clear()
    assert compiling.cache_folder("llmcore_numba.elementwise") == folder
    assert folder.stat().st_mtime > time.time() - 3600


def test_without_a_place_to_keep_them_kernels_are_compiled_all_the_same(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(compiling.CompileWarning, match="LLMCORE_CACHE"):
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
    before = compiling.cache_folder("llmcore_test_package.kernel")
    helper.write_text("VALUE = 2\n")
    compiling.cache_folder.cache_clear()
    assert before != compiling.cache_folder("llmcore_test_package.kernel")


def test_specialised_copies_have_their_own_constants(cache: Path) -> None:
    two = native_kernel(specialised(_add, "add_two", ADDED=2))
    three = native_kernel(specialised(_add, "add_three", ADDED=3))
    assert [_call(two()), _call(three()), _call(native_kernel(_add)())] == [2, 3, 1]
    assert {path.name.split("-")[0] for path in cache.rglob("*.nbi")} == {
        f"test_compiling.{name}" for name in ("add_two", "add_three", "_add")
    }


def test_a_terminal_is_told_once_what_is_compiled(cache: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    native_kernel(_add)()
    shown = capsys.readouterr().err
    assert "_add" in shown
    assert shown.endswith("\r\x1b[K")
    native_kernel(_add)()  # kept by now
    assert not capsys.readouterr().err
