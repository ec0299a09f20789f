"""``llmcore``: subcommands from plugins, near names, completion; nothing heavy at start-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.cli.main import main
from llmcore.plugins import plugins


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in plugins().commands)
    assert {"chat", "explain", "ops", "plugins", "doctor", "verify"} <= set(plugins().commands)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("llmcore ")


def test_an_unknown_command_has_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explian", "x"]) == 2
    assert "did you mean 'explain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llmcore ex", {"explain"}),
        ("llmcore ", set(plugins().commands)),
        ("llmcore chat sampling=to", {"sampling=top_k", "sampling=top_p"}),
        ("llmcore explain --to", {"--tokens"}),
        ("llmcore doctor x", set()),
        ("llmcore nothing x", set()),
    ],
)
def test_completion(
    line: str, words: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == words


def test_completion_is_installed_for_llmcore(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion llmcore")


@pytest.mark.parametrize("argv", [["--help"], ["plugins"], ["ops"], ["ops", "linear"], ["nothing"]])
def test_nothing_heavy_is_imported(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from llmcore.cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'numba', 'hydra', 'rich', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
