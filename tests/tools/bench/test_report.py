"""Reports: what it ran on comes first, in each form; numbers stand to the right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmcore_tools.bench.report import Report, Table, as_json, as_markdown, as_text, show

MACHINE: dict[str, Any] = {
    "processor": "A processor",
    "cores": {"machine": 4, "usable": 2},
    "level": "avx2",
    "level_forced": False,
    "features": ["f16c"],
    "threads": 2,
    "memory_bytes": 8 << 30,
    "platform": "Linux",
    "versions": {"python": "3.11", "numpy": "2.0", "numba": None},
    "commit": "abc+",
    "model": {
        "file": "m.gguf",
        "format": "gguf",
        "weights": {"Q4_1": {"tensors": 3, "bytes": 2_500_000}},
        "backends": ["numba", "torch"],
    },
    "state": {"read": [{"threads": 2, "bytes": 92 << 20, "gb_per_s": 31.25}], "round_trip_ns": 55.0, "load": 0.25},
}
TABLE = Table("Speed", ("test", "median"), (("pp128", "1,234"), ("tg", "5.10")), "How to read it.")
REPORT = Report("model", MACHINE, {"repeats": 7}, [TABLE])


def test_text() -> None:
    above, _, speed = as_text(REPORT).partition("Speed\n\n")
    assert above.splitlines() == [
        "processor     A processor, 4 cores, 8 GiB memory",
        "compiled for  avx2; it has f16c",
        "threads       2 (2 usable)",
        "software      python 3.11, numpy 2.0",
        "platform      Linux",
        "commit        abc+",
        "model         m.gguf",
        "weights       3 Q4_1 (2.5 MB)",
        "backends      numba, torch",
        "state         reads 31.2 GB/s over 92 MiB on 2 threads; a cache line there and back 55 ns; load 0.2",
        "",
    ]
    assert speed.splitlines() == [
        "test   median",
        "─────  ──────",
        "pp128   1,234",
        "tg       5.10",
        "",
        "How to read it.",
    ]


def test_what_is_not_known_is_not_shown() -> None:
    bare = {
        **MACHINE,
        "commit": None,
        "model": None,
        "state": None,
        "memory_bytes": None,
        "level_forced": True,
        "features": [],
    }
    text = as_text(Report("ops", bare, {}, []))
    assert "commit" not in text and "model" not in text and "state" not in text and "memory" not in text
    assert "compiled for  avx2, as LLMCORE_CPU asks\n" in text


def test_markdown() -> None:
    table = Table("T", ("a|b", "n"), (("x|y", "1"), ("z", "")))
    assert as_markdown(Report("ops", MACHINE, {}, [table])).endswith(
        "### T\n\n| a\\|b | n |\n| --- | ---: |\n| x\\|y | 1 |\n| z |  |"
    )
    assert as_markdown(REPORT).startswith(
        "### Measured on\n\n| what | value |\n| --- | --- |\n| processor | A processor"
    )


def test_json_is_what_the_tables_show_and_more() -> None:
    found = json.loads(as_json(REPORT))
    assert found == {"schema": 1, "suite": "model", "machine": MACHINE, "results": {"repeats": 7}}


@pytest.mark.parametrize(("flag", "begins"), [("--json", "{"), ("--markdown", "### Measured on"), ("", "processor")])
def test_the_flags_choose_the_form(flag: str, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, {flag: ""})
    assert capsys.readouterr().out.startswith(begins)
