"""Targets and entry points of other people's code: whatever it raises is told with its name."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from llmcore import plugins
from llmcore.errors import PluginError

FAILURES = {
    "raise RuntimeError('no such device')": "RuntimeError: no such device",
    "def (": "SyntaxError: invalid syntax",
    "raise SystemExit(3)": "SystemExit: 3",
    "import no_such_module": "No module named 'no_such_module'",
    "x = 1": "has no attribute 'kernel'",
}


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a module with the given source."""
    name = "llmcore_test_foreign_module"
    (tmp_path / f"{name}.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("module", "says"), FAILURES.items(), indirect=["module"])
def test_a_target_that_fails_is_named(module: str, says: str) -> None:
    with pytest.raises(PluginError) as caught:
        plugins.resolve(f"{module}:kernel")
    assert caught.value.message.startswith(f"cannot import '{module}:kernel': ")
    assert says in caught.value.message


@pytest.mark.parametrize("module", ["raise KeyboardInterrupt"], indirect=True)
def test_an_interrupt_is_no_failure_of_the_target(module: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        plugins.resolve(f"{module}:kernel")


@pytest.mark.parametrize("module", ["raise SystemExit(3)"], indirect=True)
def test_a_plugin_that_exits_takes_nobody_with_it(module: str) -> None:
    with pytest.warns(plugins.PluginWarning, match="SystemExit: 3"):
        loaded = plugins.load([EntryPoint("cracked", module, "llmcore")])
    assert [entry.error for entry in loaded.broken()] == ["SystemExit: 3"]
