"""``llmcore plugins``: what is there, from whom, and what is broken."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from llmcore import plugins as discovery
from llmcore.cli import plugins as command
from llmcore.plugins import PluginWarning


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in plugins and one that fails on import."""
    found = [*discovery.entry_points(group="llmcore"), EntryPoint("cracked", "no_such_module", "llmcore")]
    with pytest.warns(PluginWarning, match="cracked"):
        loaded = discovery.load(found)
    monkeypatch.setattr(command, "plugins", lambda: loaded)


def test_table(broken: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "loaded" in lines["numba"] and "backend numba" in lines["numba"]
    assert "format gguf" in lines["gguf"]
    assert "broken" in lines["cracked"] and "no_such_module" in lines["cracked"]


def test_json(broken: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    by_name = {plugin["name"]: plugin for plugin in found["plugins"]}
    assert by_name["torch"]["offers"] == {"backend": ["torch"]}
    assert by_name["torch"]["distribution"] == "llmcore"
    assert by_name["cracked"]["error"] and by_name["cracked"]["offers"] == {}
    assert found["conf"] == []
