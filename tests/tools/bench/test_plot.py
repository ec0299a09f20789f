"""The roofline's picture: written in both formats, refused before anything is measured where it cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llmcore.cli.main import main
from llmcore.errors import ConfigError
from llmcore_tools.bench import plot
from llmcore_tools.bench.costs import Cost
from llmcore_tools.bench.measure import Series
from llmcore_tools.bench.roofline import Roofline
from llmcore_tools.bench.steps import OpRow

LIMITS = Roofline(2, 1e9, {"f32": 1e9, "int8": 4e9})


def row(op: str, operations: float, seconds: float, kind: str = "f32") -> OpRow:
    """A row that reads a megabyte."""
    return OpRow(
        op, "model.layers.*.mlp", "numba", "k:f", ("Q4_1",), kind, {}, 1, Cost(1e6, 0, operations), Series((seconds,))
    )


ROWS = [row("linear", 4e6, 1e-2, "int8"), row("gather", 0, 1e-2), row("add", 1e5, 1e-7), row("rope", 1e6, 2e-2)]


def test_dots_are_what_computes_and_takes_time() -> None:
    assert [each.op for each in plot.shown(ROWS)] == ["rope", "linear"]


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
@pytest.mark.parametrize("rows", [ROWS, []])
def test_both_formats(suffix: str, begins: bytes, rows: list[OpRow], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = plot.check_target(str(tmp_path / f"roof.{suffix}"))
    plot.draw(path, "A step", rows, LIMITS)
    assert path.read_bytes().startswith(begins)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "roof.png"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"roof\.png"):
        plot.draw(folder, "A step", ROWS, LIMITS)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="matplotlib") as caught:
        plot.check_target(str(tmp_path / "roof.png"))
    assert caught.value.remedy == "pip install 'llmcore[bench]'"


@pytest.mark.parametrize(
    ("target", "words"), [("roof.gif", "what kind of picture?"), ("/no/such/folder/roof.svg", "there is no folder")]
)
def test_refused_at_once(target: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "model=/nowhere", "--plot", target]) == 2
    assert words in capsys.readouterr().err
