"""``llmcore doctor``: what works, what is missing and the command that gets it."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from llmcore import plugins as discovery
from llmcore.cli import doctor, probe
from llmcore.hookspecs import BackendInfo
from llmcore.plugins import Plugins, PluginWarning


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Without importing torch; with a cache of our own."""
    gpu = {"name": "Card", "memory_bytes": 2**34, "capability": "9.0"}
    facts = {"version": "2", "threads": 2, "cuda": "12", "hip": None, "gpus": [gpu]}
    monkeypatch.setattr(probe, "torch", lambda: facts)
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_findings(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (quick / "models").mkdir(parents=True)
    (quick / "models" / "m").write_bytes(b"x" * 1000)
    assert doctor.main(["--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["healthy"]
    assert found["packages"]["numpy"] and found["packages"]["hydra-core"]
    assert found["threads"]["usable"] >= 1
    assert found["backends"] == dict.fromkeys(("numba", "torch", "triton", "triton_fp8", "triton_w8a8"))
    assert found["cache"] == {
        "folder": str(quick),
        "writable": True,
        "bytes": {"models": 1000, "packed": 0, "kernels": 0},
    }
    assert found["broken_plugins"] == []


def test_text(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert "Card (16 GiB, 9.0)" in shown
    assert "Models can be run." in shown
    assert str(quick) in shown
    assert not quick.exists()


def test_what_is_missing_and_broken(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(PluginWarning):
        installed = discovery.load([EntryPoint("cracked", "no_such_module", "llmcore")])
    installed.backends["far"] = BackendInfo("far", "far away", (), requires=("no_such_import",))
    monkeypatch.setattr(doctor, "plugins", lambda: installed)
    monkeypatch.setattr(probe, "version", _none_installed)
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    assert "needs no_such_import: pip install no_such_import" in shown
    assert "pip install numba" in shown
    assert "pip install 'llmcore[gpu]'" in shown
    assert "cracked" in shown and "no_such_module" in shown
    assert "Something needs repair." in shown


def _none_installed(name: str) -> str:
    raise probe.PackageNotFoundError(name)


def test_a_backend_that_is_not_ready() -> None:
    ready = BackendInfo("x", "", (), ready="helpers.fake_llm:FakeLLM.close")  # raises TypeError: it is called bare
    assert doctor.problem_of(BackendInfo("x", "", (), ready="no.such:thing")) is not None
    with pytest.raises(TypeError):
        doctor.problem_of(ready)


def test_no_backend_at_all_is_not_healthy(quick: Path) -> None:
    assert doctor.examine(Plugins())["healthy"] is False


def test_facts_of_this_machine() -> None:
    assert probe.cpu()["name"]
    assert set(probe.cpu()["features"] or []) <= set(probe.CPU_FLAGS)
    assert probe.threads()["processors"] >= 1
    assert probe.packages(["pytest", "no-such-package"])["no-such-package"] is None


def test_a_quota_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, wanted in (("150000 100000", 1.5), ("max 100000", None), ("nonsense", None)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        assert probe._quota() == wanted


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"12345")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert 5 <= probe.folder_bytes(tmp_path / "a") < 5 + 200
    assert probe.folder_bytes(tmp_path / "nothing") == 0
