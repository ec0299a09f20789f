"""The cache directory: where it is, who may use it, and its lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.errors import ConfigError
from llmcore.weights.cachedir import FetchOptions, cache_root, locked, subfolder


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCORE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "llmcore"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert cache_root() == tmp_path / ".cache" / "llmcore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "llmcore"
    monkeypatch.setenv("LLMCORE_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


def test_private_on_creation(tmp_path: Path) -> None:
    folder = subfolder("packed", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "packed"
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent.stat().st_mode & 0o777 == 0o700
    assert subfolder("packed", tmp_path / "cache") == folder


def test_kernels_that_others_can_write_are_refused(tmp_path: Path) -> None:
    subfolder("kernels", tmp_path).chmod(0o770)
    with pytest.raises(ConfigError, match="chmod 700"):
        subfolder("kernels", tmp_path)
    subfolder("models", tmp_path).chmod(0o770)
    subfolder("models", tmp_path)  # data may be shared


def test_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="LLMCORE_CACHE"):
        subfolder("models", tmp_path / "file")


HOLD = """
import sys
from pathlib import Path
from llmcore.weights.cachedir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_lock_waits_for_another_process_and_survives_its_death(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited: list[str] = []

    def on_wait() -> None:
        waited.append("waited")
        holder.kill()  # a dead process holds nothing

    with locked(tmp_path, on_wait):
        assert waited == ["waited"]
    holder.communicate()
    with locked(tmp_path, lambda: pytest.fail("nobody holds it")):
        pass


def test_report_is_silent_by_default() -> None:
    FetchOptions().report("x", 1, 2)
    told: list[tuple[str, int, int]] = []
    FetchOptions(progress=lambda *seen: told.append(seen)).report("x", 1, 2)
    assert told == [("x", 1, 2)]
