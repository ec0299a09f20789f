"""What is noted about a file holds until the file changes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from llmcore.errors import CheckpointError
from llmcore.weights import ledger as module
from llmcore.weights.cachedir import CacheWarning
from llmcore.weights.formats import FORMATS
from llmcore.weights.ledger import Ledger
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written count as settled."""
    monkeypatch.setattr(module, "SETTLED_NS", -1)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that were looked at, and ``"digest"`` for each file that was read as a whole."""
    seen: list[str] = []
    check, digest = module.check_finite, module._digest

    def spy_check(tensors: list[Tensor]) -> None:
        seen.extend(tensor.name for tensor in tensors)
        check(tensors)

    monkeypatch.setattr(module, "check_finite", spy_check)
    monkeypatch.setattr(module, "_digest", lambda file: seen.append("digest") or digest(file))
    return seen


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "notes").mkdir()
    return Ledger(tmp_path / "notes", least=0)


def tensors(path: Path) -> list[Tensor]:
    mapping = MappedFile(path)
    return [Tensor(name, (4,), FORMATS["F32"], mapping, 16 * i) for i, name in enumerate("ab")]


def weights(path: Path, last: float = 7.0) -> Path:
    values = np.arange(8, dtype=np.float32)
    values[-1] = last
    path.write_bytes(values.tobytes())
    return path


def test_looks_once(tmp_path: Path, ledger: Ledger, looked_at: list[str]) -> None:
    file = weights(tmp_path / "w")
    for _ in range(2):
        ledger.check_finite(tensors(file))
        ledger.sha256(MappedFile(file))
    assert looked_at == ["a", "b", "digest"]


def test_other_tensors_of_the_file_are_looked_at(tmp_path: Path, ledger: Ledger, looked_at: list[str]) -> None:
    file = weights(tmp_path / "w")
    ledger.check_finite(tensors(file)[:1])
    ledger.check_finite(tensors(file))
    assert looked_at == ["a", "a", "b"]


def test_a_changed_file_is_another(tmp_path: Path, ledger: Ledger, looked_at: list[str]) -> None:
    """Same size, and a time of modification that somebody has put back."""
    file = weights(tmp_path / "w")
    before, when = ledger.sha256(MappedFile(file)), file.stat().st_mtime_ns
    ledger.check_finite(tensors(file))
    weights(file, np.nan)
    os.utime(file, ns=(when, when))
    with pytest.raises(CheckpointError, match="not finite"):
        ledger.check_finite(tensors(file))
    assert ledger.sha256(MappedFile(file)) != before
    with pytest.raises(CheckpointError, match="not finite"):  # a failure is not noted as done
        ledger.check_finite(tensors(file))


def test_a_copy_is_looked_at_and_has_the_digest(tmp_path: Path, ledger: Ledger, looked_at: list[str]) -> None:
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert ledger.sha256(MappedFile(one)) == ledger.sha256(MappedFile(two))
    assert looked_at == ["digest", "digest"]


def test_changed_while_mapped(tmp_path: Path, ledger: Ledger) -> None:
    file = weights(tmp_path / "w")
    mapping = MappedFile(file)
    assert mapping.unchanged()
    weights(tmp_path / "new").replace(file)
    assert not mapping.unchanged() and ledger.sha256(mapping) is None
    file.unlink()
    assert not mapping.unchanged()
    assert list((tmp_path / "notes").iterdir()) == []


def test_nothing_is_noted_of_a_file_that_may_still_change(
    tmp_path: Path, ledger: Ledger, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 10**18)
    file = weights(tmp_path / "w")
    for _ in range(2):
        ledger.check_finite(tensors(file))
    assert looked_at == ["a", "b", "a", "b"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"finite": 1}', b"\xff"])
def test_a_damaged_note(damage: bytes, tmp_path: Path, ledger: Ledger, looked_at: list[str]) -> None:
    file = weights(tmp_path / "w")
    ledger.check_finite(tensors(file))
    (note,) = (tmp_path / "notes").iterdir()
    note.write_bytes(damage)
    for _ in range(2):
        ledger.check_finite(tensors(file))
    assert looked_at == ["a", "b"] * 2


def test_without_a_folder_or_for_small_files_nothing_is_written(tmp_path: Path, ledger: Ledger) -> None:
    file = weights(tmp_path / "w")
    ledger.least = 1000
    for each in (Ledger(None), ledger):
        each.check_finite(tensors(file))
        assert each.sha256(MappedFile(file))
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    file = weights(tmp_path / "w")
    with pytest.warns(CacheWarning, match="Read-only"):
        ledger.check_finite(tensors(file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ledger.sha256(MappedFile(file))
    assert ledger.folder is not None  # what others have written is still of use


def test_no_folder_at_all_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="cannot be created"):
        assert Ledger.at(tmp_path / "file").folder is None
